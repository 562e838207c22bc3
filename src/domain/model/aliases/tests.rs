//! The keys against a model of Ollama's own comparison (`server/sched.go`, `needsReload`).

use super::super::Part;
use super::*;
use proptest::prelude::*;

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap().name
}

fn options(text: &str) -> RunnerOptions {
    let mut options = RunnerOptions::default();
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap();
        options.set(name, value).unwrap();
    }
    options
}

fn weights(blob: &str) -> Weights {
    Weights(vec![Part::Model(blob.to_owned())])
}

fn file(parameters: &str) -> Modelfile {
    Modelfile {
        weights: weights("w"),
        options: options(parameters),
        shifts_by_default: true,
        has_vision: false,
        trained_context: None,
    }
}

fn aliases(models: &[(&str, Modelfile)]) -> Aliases {
    let models = models.iter().map(|(text, file)| (name(text), file.clone())).collect();
    Aliases::of(models, &Aliases::default())
}

/// The options a runner is started with, as Ollama sees them; `None` is its default.
#[derive(Debug, PartialEq)]
struct Runner {
    num_ctx: Option<i64>,
    num_batch: Option<i64>,
    num_gpu: i64,
    num_thread: i64,
    main_gpu: Option<i64>,
    draft_num_predict: Option<i64>,
    use_mmap: Option<bool>,
    shift: bool,
}

/// The built-in defaults, then the model file, then the request (`routes.go`, `modelOptions`).
fn runner(file: &Modelfile, request: &RunnerOptions) -> Runner {
    let own = &file.options;
    let num_ctx_min = if file.has_vision { 2048 } else { 4 };
    Runner {
        num_ctx: request.num_ctx.or(own.num_ctx).map(|tokens| {
            tokens.max(num_ctx_min).min(file.trained_context.unwrap_or(i64::MAX).max(num_ctx_min))
        }),
        num_batch: request.num_batch.or(own.num_batch),
        num_gpu: request.num_gpu.or(own.num_gpu).unwrap_or(-1),
        num_thread: request.num_thread.or(own.num_thread).unwrap_or(0),
        main_gpu: request.main_gpu.or(own.main_gpu),
        draft_num_predict: request.draft_num_predict.or(own.draft_num_predict),
        use_mmap: request.use_mmap.or(own.use_mmap),
        shift: request.shift.unwrap_or(file.shifts_by_default),
    }
}

fn needs_reload(loaded: &Runner, wanted: &Runner) -> bool {
    let num_gpu = if wanted.num_gpu < 0 { loaded.num_gpu } else { wanted.num_gpu };
    *loaded != Runner { num_gpu, ..*wanted }
}

#[test]
fn names_of_one_blob_have_one_key() {
    let all =
        aliases(&[("zed", file("")), ("assistant", file("")), ("small", file("num_ctx=2048"))]);
    let key = |text, asked| all.load_key(&name(text), options(asked)).to_string();
    assert_eq!(key("zed", ""), "assistant:latest");
    assert_eq!(key("assistant", ""), "assistant:latest");
    assert_eq!(key("small", ""), "assistant:latest num_ctx=2048");
    assert_eq!(key("zed", "num_ctx=2048"), key("small", ""));
    assert_eq!(key("small", "num_ctx=4096"), key("zed", "num_ctx=4096"));
    assert_eq!(key("other", "num_ctx=1"), "other:latest num_ctx=4");
}

/// A name whose file says what another leaves open cannot load for it: most options cannot be un-said.
#[test]
fn a_name_is_not_loaded_by_one_whose_file_says_more() {
    let all =
        aliases(&[("a", file("num_ctx=2048")), ("b", file("use_mmap=false")), ("c", file(""))]);
    for text in ["a", "b", "c"] {
        assert_eq!(all.representative(&name(text)), &name("c"), "{text}");
    }
    let all = aliases(&[("a", file("num_ctx=2048")), ("b", file("use_mmap=false"))]);
    assert_eq!(all.representative(&name("b")), &name("b"));
    let key = all.load_key(&name("b"), RunnerOptions::default());
    assert_eq!(key.to_string(), "b:latest use_mmap=false");
}

#[test]
fn other_files_or_other_defaults_are_other_runners() {
    let adapted = Weights(vec![Part::Model("w".to_owned()), Part::Adapter("x".to_owned())]);
    let models = [
        ("plain", file("")),
        ("adapted", Modelfile { weights: adapted, ..file("") }),
        ("sees", Modelfile { has_vision: true, ..file("") }),
        ("stays", Modelfile { shifts_by_default: false, ..file("") }),
    ];
    let all = aliases(&models);
    for (text, _) in &models {
        assert_eq!(all.representative(&name(text)), &name(text));
    }
    let key = |text, asked| all.load_key(&name(text), options(asked)).to_string();
    assert_eq!(key("sees", "num_ctx=512"), "sees:latest num_ctx=2048");
    assert_eq!(key("stays", "shift=false"), "stays:latest");
    assert_eq!(key("stays", "shift=true"), "stays:latest shift=true");
    assert_eq!(key("plain", "shift=true"), "plain:latest");
    assert_eq!(key("plain", "shift=false"), "plain:latest shift=false");
}

/// Where the file of the name it is loaded by gives a number, automatic must be asked for.
#[test]
fn automatic_is_said_where_the_file_says_a_number() {
    let all = aliases(&[("m", file("num_gpu=20 num_thread=4"))]);
    let key = |asked| all.load_key(&name("m"), options(asked)).to_string();
    assert_eq!(key(""), "m:latest num_gpu=20 num_thread=4");
    assert_eq!(key("num_gpu=-1"), "m:latest num_gpu=-1 num_thread=4");
    assert_eq!(key("num_thread=0"), "m:latest num_gpu=20 num_thread=0");
    let all = aliases(&[("m", file("num_gpu=-1 num_thread=0"))]);
    assert_eq!(all.load_key(&name("m"), options("num_gpu=-1")).to_string(), "m:latest");
}

/// Ollama clamps before it compares: 32,768 and 131,072 are one runner of weights that were trained with 8,192.
#[test]
fn contexts_above_the_trained_one_are_one_key() {
    let trained = Modelfile { trained_context: Some(8_192), ..file("num_ctx=16384") };
    let plain = Modelfile { options: RunnerOptions::default(), ..trained.clone() };
    let all = aliases(&[("m", plain), ("large", trained)]);
    let key = |text, asked| all.load_key(&name(text), options(asked)).to_string();
    for asked in ["num_ctx=8192", "num_ctx=8193", "num_ctx=32768", "num_ctx=131072"] {
        assert_eq!(key("m", asked), "m:latest num_ctx=8192", "{asked}");
    }
    assert_eq!(key("large", ""), "m:latest num_ctx=8192");
    assert_eq!(key("m", "num_ctx=4096"), "m:latest num_ctx=4096");
    assert_eq!(key("m", "num_ctx=-5"), key("m", "num_ctx=0"));
    assert_eq!(key("m", ""), "m:latest");
}

/// A load under the name that is asked for makes the same runner, if need be by asking for what its file gives otherwise.
#[test]
fn a_key_is_loaded_by_the_name_that_is_asked_for() {
    let all = aliases(&[("m", file("")), ("twin", file("")), ("gpu", file("num_gpu=20"))]);
    let plain: LoadKey = "m:latest".parse().unwrap();
    assert_eq!(all.options_to_load_as(&name("twin"), &plain), Some(options("")));
    assert_eq!(all.options_to_load_as(&name("gpu"), &plain), Some(options("num_gpu=-1")));
    let all = aliases(&[("m", file("")), ("small", file("num_ctx=2048"))]);
    assert_eq!(all.options_to_load_as(&name("small"), &plain), None, "its file says more");
    assert_eq!(all.options_to_load_as(&name("other"), &plain), None);
}

/// A copy does not take over from the name that is resident and queued for, though its name comes first; a name that says
/// less does, since only it can stand for all.
#[test]
fn a_copy_does_not_become_the_representative() {
    let with = |parameters| file(parameters);
    let before = aliases(&[("m", with("num_ctx=2048"))]);
    let both = vec![(name("a"), with("num_ctx=2048")), (name("m"), with("num_ctx=2048"))];
    let after = Aliases::of(both.clone(), &before);
    assert_eq!(after.representative(&name("a")), &name("m"));
    assert_eq!(Aliases::of(both.clone(), &after).representative(&name("a")), &name("m"));
    assert_eq!(Aliases::of(both[..1].to_vec(), &after).representative(&name("a")), &name("a"));
    let base = [both, vec![(name("z"), with(""))]].concat();
    assert_eq!(Aliases::of(base, &after).representative(&name("m")), &name("z"));
}

#[test]
fn a_runner_goes_by_a_name_that_is_left() {
    let all = aliases(&[("b", file("num_ctx=2048")), ("c", file("num_ctx=9"))]);
    assert_eq!(all.standing_for(&file("num_ctx=7 num_gpu=1")), Some(&name("b")));
    assert_eq!(all.standing_for(&file("")), None);
    assert_eq!(all.standing_for(&Modelfile { weights: weights("v"), ..file("num_ctx=7") }), None);
}

/// Few values, so that names meet in what they say.
fn any_options() -> impl Strategy<Value = RunnerOptions> {
    let number =
        |values: &'static [i64]| proptest::option::weighted(0.3, proptest::sample::select(values));
    let switch = || proptest::option::weighted(0.2, any::<bool>());
    let sizes = (
        number(&[-1, 0, 4, 512, 2048, 8192, 32_768]),
        number(&[256, 512]),
        number(&[-2, -1, 0, 20]),
    );
    let places = (number(&[0, 4]), number(&[0, 1]), number(&[0, 4]));
    (sizes, places, switch(), switch()).prop_map(|(sizes, places, use_mmap, shift)| RunnerOptions {
        num_ctx: sizes.0,
        num_batch: sizes.1,
        num_gpu: sizes.2,
        num_thread: places.0,
        main_gpu: places.1,
        draft_num_predict: places.2,
        use_mmap,
        shift,
    })
}

fn any_file() -> impl Strategy<Value = Modelfile> {
    let blob = proptest::sample::select(vec!["v", "w"]);
    let rare = || proptest::bool::weighted(0.2);
    (blob, any_options(), rare(), rare()).prop_map(|(blob, options, stays, has_vision)| Modelfile {
        weights: weights(blob),
        options: RunnerOptions { shift: None, ..options },
        shifts_by_default: !stays,
        has_vision,
        // A property of the weights; of one of the two it is not known.
        trained_context: (blob == "v").then_some(2048),
    })
}

proptest! {
    /// For any names, options and requests: the load that foreman makes for a key serves every job with that key, and every
    /// job whose key it says it serves, whatever name it comes under; and the key of a key is itself.
    #[test]
    fn a_load_by_its_key_serves_every_job_of_the_key(
        files in proptest::collection::vec(any_file(), 1..6),
        asked in proptest::collection::vec(any_options(), 1..6),
    ) {
        let models: Vec<(ModelName, Modelfile)> =
            files.iter().zip('a'..).map(|(file, it)| (name(&it.to_string()), file.clone())).collect();
        let all = Aliases::of(models.clone(), &Aliases::default());
        let file_of = |wanted: &ModelName| &models.iter().find(|(it, _)| it == wanted).unwrap().1;
        let mut loads = Vec::new();
        for (model, file) in &models {
            let representative = all.representative(model);
            prop_assert_eq!(all.representative(representative), representative);
            prop_assert_eq!(all.standing_for(file), Some(representative));
            for asked in &asked {
                let key = all.load_key(model, *asked);
                prop_assert_eq!(&key.model, representative);
                prop_assert_eq!(&all.load_key(&key.model, key.options), &key);
                prop_assert_eq!(&key.to_string().parse::<LoadKey>().unwrap(), &key);
                let own = all.options_to_load_as(model, &key).unwrap();
                prop_assert!(!needs_reload(&runner(file, &own), &runner(file, asked)), "{model} {key}");
                let both = (runner(file, &own), runner(file_of(representative), &key.options));
                prop_assert!(!needs_reload(&both.0, &both.1) && !needs_reload(&both.1, &both.0));
                loads.push((key, runner(file, asked)));
            }
        }
        for (loaded, _) in &loads {
            let made = runner(file_of(&loaded.model), &loaded.options);
            for (key, wanted) in loads.iter().filter(|(key, _)| loaded.serves(key)) {
                prop_assert!(!needs_reload(&made, wanted), "{loaded} for {key}: {made:?} {wanted:?}");
            }
        }
    }

    /// Equal runners of equal files get one key, so that they never cost a swap, unless no name can load for both.
    #[test]
    fn jobs_of_one_runner_have_one_key(
        files in proptest::collection::vec(any_file(), 1..6),
        asked in any_options(),
    ) {
        let plain = RunnerOptions::default();
        let models: Vec<(ModelName, Modelfile)> = files
            .iter()
            .map(|file| Modelfile { options: plain, ..file.clone() })
            .zip('a'..)
            .map(|(base, it)| (name(&it.to_string()), base))
            .chain(files.iter().cloned().zip('n'..).map(|(file, it)| (name(&it.to_string()), file)))
            .collect();
        let all = Aliases::of(models.clone(), &Aliases::default());
        for (one, file) in &models {
            for (other, other_file) in &models {
                let is_same = file.weights == other_file.weights
                    && file.shifts_by_default == other_file.shifts_by_default
                    && file.has_vision == other_file.has_vision
                    && runner(file, &asked) == runner(other_file, &asked)
                    && runner(file, &asked).num_gpu >= -1;
                if is_same {
                    prop_assert_eq!(all.load_key(one, asked), all.load_key(other, asked));
                }
            }
        }
    }
}
