//! What is resident as seen through snapshots of ps, foreman's own loads and the names of a runner.

use super::*;
use crate::domain::model::{Modelfile, Part, RunnerOptions, Weights};

fn key(name: &str) -> LoadKey {
    let model = ModelName::parse(name).unwrap().name;
    LoadKey::new(model, RunnerOptions::default())
}

fn ps(name: &str) -> PsModel {
    let model = key(name).model;
    PsModel {
        model: model.clone(),
        listed: model,
        digest: String::new(),
        context_length: None,
        expires_at: String::new(),
    }
}

/// The names of each set are names of one runner, the first in order the one that loads.
fn knowing(sets: &[&[&str]]) -> Residency {
    let file = |set: usize| Modelfile {
        weights: Weights(vec![Part::Model(set.to_string())]),
        options: RunnerOptions::default(),
        shifts_by_default: true,
        has_vision: false,
        trained_context: None,
    };
    let sets = sets.iter().enumerate();
    let models =
        sets.flat_map(|(set, names)| names.iter().map(move |name| (key(name).model, file(set))));
    let aliases = Aliases::of(models.collect(), &Aliases::default());
    Residency::new(watch::channel(Arc::new(aliases)).1)
}

fn unaware() -> Residency {
    knowing(&[])
}

/// Ps lists a runner by the name it was loaded by.
#[test]
fn all_names_of_a_runner_are_one_model() {
    let residency = knowing(&[&["a", "z"], &["b"]]);
    residency.loaded(&key("a"), None, 1);
    assert!(residency.holds(&key("z").model) && !residency.holds(&key("b").model));
    assert!(residency.goes_by(&key("a").model) && !residency.goes_by(&key("z").model));
    let gone = residency.reconcile(residency.asking(), &[ps("z")], |_| false, 2);
    assert_eq!((gone, residency.held()[0].key.clone()), (vec![], Some(key("a"))));
    residency.loaded(&key("z"), None, 3);
    assert_eq!(residency.entries().len(), 1, "loaded anew under its other name");
    residency.unloaded(&key("a").model);
    assert!(residency.held().is_empty());
}

#[test]
fn what_foreman_loaded_is_known_with_its_options_and_what_it_finds_is_not() {
    let residency = unaware();
    residency.loaded(&key("a"), None, 1);
    let asked = residency.asking();
    let gone = residency.reconcile(asked, &[ps("a"), ps("b")], |_| false, 2);
    assert_eq!(gone, []);
    let keys: Vec<_> = residency.held().into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [Some(key("a")), None]);
}

#[test]
fn a_model_pulled_anew_is_not_what_is_resident() {
    let residency = unaware();
    residency.loaded(&key("a"), None, 1);
    let old = PsModel { digest: "old".to_owned(), ..ps("a") };
    let new = PsModel { digest: "new".to_owned(), ..ps("a") };
    let known = || residency.held()[0].key.is_some();
    residency.forget_replaced(std::slice::from_ref(&old), |_| Some("old".to_owned()));
    assert!(known());
    residency.forget_replaced(&[old.clone(), new], |_| Some("new".to_owned()));
    assert!(known(), "the new runner is there, beside the old one");
    residency.forget_replaced(&[old], |_| Some("new".to_owned()));
    assert!(!known());
}

#[test]
fn a_pin_stays_foremans_through_doubt_and_outage() {
    let residency = unaware();
    let limit = Some(Duration::from_secs(5));
    residency.loaded(&key("a"), limit, 1);
    residency.distrust(&key("a").model);
    residency.clear();
    residency.reconcile(residency.asking(), &[ps("a"), ps("b")], |_| false, 2);
    let pins: Vec<_> =
        residency.entries().iter().map(|entry| (entry.is_pinned, entry.idle_limit)).collect();
    assert_eq!(pins, [(true, limit), (false, None)]);
}

#[test]
fn a_key_gone_without_foreman_is_told() {
    let residency = unaware();
    residency.loaded(&key("a"), None, 1);
    assert_eq!(residency.reconcile(residency.asking(), &[], |_| false, 2), [key("a")]);
    assert!(residency.held().is_empty());
}

#[test]
fn an_older_snapshot_does_not_undo_a_load() {
    let residency = unaware();
    let asked = residency.asking();
    residency.loaded(&key("a"), None, 1);
    assert_eq!(residency.reconcile(asked, &[], |_| false, 2), []);
    assert!(residency.holds(&key("a").model));
}

/// Else a key that somebody pushes out after that would stay away until the old time has come again.
#[test]
fn a_clock_set_back_leaves_nothing_in_the_future() {
    let residency = unaware();
    residency.loaded(&key("a"), None, 90_000_000);
    residency.clock_set_back(5_000);
    let entry = &residency.entries()[0];
    assert_eq!((entry.since_ms, entry.used_at_ms), (5_000, 5_000));
}
