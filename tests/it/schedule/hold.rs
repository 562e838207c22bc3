//! Holding the resident model for clients that will be back: what it is worth, and what happens without it.

use std::time::Duration;

use stub_ollama::{Counts, Model, Stub, StubConfig};

use super::agents::{Manner, agents};
use super::{ask, decisions, given, known, serve, served};
use crate::harness::{Foreman, stub_config};

const MODELS: [&str; 3] = ["a", "b", "c"];

/// One agent a model.
const ONE_EACH: [&[&str]; 3] = [&["a"], &["b"], &["c"]];

/// Steps of each agent: through foreman, and at the stub alone, where each costs a load.
const STEPS: usize = 30;
const STEPS_ALONE: usize = 8;

/// Loads that cost about as much as many answers.
fn slow_loads() -> StubConfig {
    let model = |name| Model::new(name).load_time(Duration::from_millis(400));
    StubConfig {
        token_time: Duration::from_millis(2),
        default_tokens: 4,
        ..StubConfig::with_models(MODELS.map(model))
    }
}

/// What a day of agents came to.
#[derive(Debug)]
struct Figures {
    loads_per_100_jobs: u64,
    time_per_job: Duration,
}

impl Figures {
    fn new(counts: &Counts, jobs: usize, took: Duration) -> Figures {
        let jobs = u32::try_from(jobs).unwrap();
        Figures {
            loads_per_100_jobs: counts.loads * 100 / u64::from(jobs),
            time_per_job: took / jobs,
        }
    }
}

#[expect(clippy::print_stderr, reason = "figures are for whoever runs the test")]
fn tell(figures: &str) {
    eprintln!("{figures}");
}

/// The stub alone, with the same agents, beside whatever else is measured.
async fn alone(lists: &[&'static [&'static str]], manner: Manner) -> Figures {
    let stub = Stub::start(slow_loads()).await;
    let took = agents(stub.addr(), lists, STEPS_ALONE, manner).await;
    Figures::new(&stub.counts(), lists.len() * STEPS_ALONE, took)
}

async fn through_foreman(lists: &[&'static [&'static str]], manner: Manner) -> Figures {
    let stub = Stub::start(slow_loads()).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let took = agents(foreman.addr, lists, STEPS, manner).await;
    let status = foreman.status().await;
    let scheduler = &status["scheduler"];
    tell(&format!(
        "{manner:?}: {} holds hit, {} missed",
        scheduler["hold_hits"], scheduler["hold_misses"]
    ));
    assert_eq!(stub.counts().evictions, 0);
    let loads = &status["loads"];
    assert_eq!(loads["late"], 0, "{loads}");
    assert!(loads["bound"].as_u64() <= loads["loads"].as_u64(), "{loads}");
    Figures::new(&stub.counts(), lists.len() * STEPS, took)
}

async fn is_worth_it(lists: &[&'static [&'static str]], manner: Manner) {
    let (alone, held) = tokio::join!(alone(lists, manner), through_foreman(lists, manner));
    tell(&format!("{manner:?}, {} agents: alone {alone:?}, through foreman {held:?}", lists.len()));
    assert!(held.loads_per_100_jobs <= 12, "{held:?}");
    assert!(held.time_per_job * 2 <= alone.time_per_job, "{held:?}, alone {alone:?}");
}

/// Three agents on three models that keep their connections.
#[tokio::test]
async fn agents_that_keep_their_connections_share_the_gpu_with_few_loads() {
    is_worth_it(&ONE_EACH, Manner::KeepsConnection).await;
}

/// Three agents whose conversations grow, each step over a new connection.
#[tokio::test]
async fn agents_whose_conversations_grow_share_the_gpu_with_few_loads() {
    is_worth_it(&ONE_EACH, Manner::GrowsConversation).await;
}

/// Three agents of one address and one User-Agent, each question by itself over a new connection: nothing tells them apart.
/// (They cost a load a step: a client counted as back only when all its programs were idle.)
#[tokio::test]
async fn agents_that_look_alike_share_the_gpu_with_few_loads() {
    is_worth_it(&ONE_EACH, Manner::SingleTurn).await;
}

/// The same with two of them on each model. (The stub alone starves the others for the first pair; it is no measure.)
#[tokio::test]
async fn pairs_of_agents_that_look_alike_share_the_gpu_with_few_loads() {
    let lists: [&[&str]; 6] = [&["a"], &["a"], &["b"], &["b"], &["c"], &["c"]];
    let held = through_foreman(&lists, Manner::SingleTurn).await;
    tell(&format!("pairs: {held:?}"));
    assert!(held.loads_per_100_jobs <= 12, "{held:?}");
}

/// Shell loops of single runs of the `ollama` program.
#[tokio::test]
async fn shell_loops_share_the_gpu_with_few_loads() {
    is_worth_it(&ONE_EACH, Manner::ShellLoop).await;
}

/// Agents that look alike and go to another model for each step need no more loads than the stub alone: nobody is held for.
#[tokio::test]
async fn agents_that_look_alike_and_alternate_are_not_held_for() {
    let lists: [&[&str]; 3] = [&["a", "b"], &["b", "c"], &["c", "a"]];
    let manner = Manner::SingleTurn;
    let (alone, held) = tokio::join!(alone(&lists, manner), through_foreman(&lists, manner));
    tell(&format!("alternating: alone {alone:?}, through foreman {held:?}"));
    assert!(held.loads_per_100_jobs <= alone.loads_per_100_jobs, "{held:?}, alone {alone:?}");
    assert!(held.time_per_job <= alone.time_per_job * 5 / 4, "{held:?}, alone {alone:?}");
}

/// Without the hold nearly each step costs a load: the two tests above can fail.
#[tokio::test]
async fn without_the_hold_agents_cost_a_load_a_step() {
    let stub = Stub::start(slow_loads()).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.hold = given("off")).await.up().await;
    let took = agents(foreman.addr, &ONE_EACH, STEPS_ALONE, Manner::KeepsConnection).await;
    let figures = Figures::new(&stub.counts(), ONE_EACH.len() * STEPS_ALONE, took);
    tell(&format!("without the hold: {figures:?}"));
    assert!(figures.loads_per_100_jobs >= 50, "{figures:?}");
    assert!(decisions(&foreman.status().await).iter().all(|text| !text.starts_with("hold")));
}

/// The status tells what was decided and why: the first load, the drain, the hold, and the swap when nobody came back.
#[tokio::test]
async fn decisions_are_told_with_their_reasons() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.hold = given("300ms")).await.up().await;
    stub.hold_loads();
    let mut clients = vec![ask(foreman.addr, "a", "1"), ask(foreman.addr, "a", "2")];
    known(&foreman, 2).await;
    clients.push(ask(foreman.addr, "b", "3"));
    known(&foreman, 3).await;
    stub.release_loads();
    for client in clients {
        served(client).await;
    }
    let status = foreman.status().await;
    let mut told = decisions(&status);
    told.reverse();
    let wanted =
        ["load first a:latest", "run drain a:latest", "hold hold a:latest", "swap dry b:latest"];
    assert_eq!(told, wanted);
    let explained = &status["scheduler"]["decisions"];
    assert!(explained.as_array().unwrap().iter().all(|one| one["because"].is_string()));
    assert_eq!(status["scheduler"]["hold_misses"], 1);
    assert_eq!(status["scheduler"]["hold_hits"], 0);
    let loads = &status["loads"];
    assert_eq!(
        (&loads["jobs"], &loads["loads"], &loads["late"]),
        (&3.into(), &2.into(), &0.into())
    );
    assert_eq!(loads["bound"], 2, "{loads}");
}

/// A fixed hold that its client comes back in is a hit, and the one who waits is served after it.
#[tokio::test]
async fn a_hold_that_somebody_comes_back_in_is_a_hit() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.hold = given("2s")).await.up().await;
    serve(foreman.addr, "a", "1").await;
    let other = ask(foreman.addr, "b", "2");
    foreman.wait_for(|status| status["scheduler"]["holding"] == "a:latest").await;
    serve(foreman.addr, "a", "3").await;
    served(other).await;
    assert_eq!(super::texts(&stub), ["1", "3", "2"]);
    assert_eq!(foreman.status().await["scheduler"]["hold_hits"], 1);
}
