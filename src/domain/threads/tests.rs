//! Who goes on with what: the cases by hand, then random histories against what the words promise.

use super::*;
use proptest::prelude::*;

/// A foreman's memory of threads, with jobs named by numbers and chains made of words.
#[derive(Default)]
struct World {
    threads: Threads,
    now_ms: i64,
    jobs: u128,
}

fn client(number: u8) -> ClientId {
    ClientId::of(None, "10.0.0.1", &[number])
}

fn key() -> LoadKey {
    "m:latest".parse().unwrap()
}

/// The chain of these messages, as the wire makes it.
fn chain(messages: &[u64]) -> Vec<u64> {
    let mut link = 7_u64;
    let links = messages.iter().map(|message| {
        link = (link ^ message).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        link
    });
    links.collect()
}

impl World {
    /// The next job arrives, a second after whatever was last.
    fn arrives(
        &mut self,
        client_number: u8,
        connection: u64,
        messages: &[u64],
    ) -> (JobId, Arrival) {
        self.jobs += 1;
        self.now_ms += 1_000;
        let job = JobId(Ulid::from_parts(0, self.jobs));
        let whom = Whom { client: client(client_number), connection };
        let arrival = self.threads.arrived(self.now_ms, job, &whom, &chain(messages));
        assert_limits(&self.threads);
        (job, arrival)
    }

    fn ends(&mut self, job: JobId) {
        self.now_ms += 10;
        self.threads.ended(job, self.now_ms, key());
        assert_limits(&self.threads);
    }

    /// A job that arrives and ends.
    fn served(&mut self, client_number: u8, connection: u64, messages: &[u64]) -> Arrival {
        let (job, arrival) = self.arrives(client_number, connection, messages);
        self.ends(job);
        arrival
    }
}

/// Every index holds what the threads hold, and nothing grows without end.
fn assert_limits(threads: &Threads) {
    let count = threads.threads.len();
    assert!(count <= THREADS_MAX && threads.chains.len() <= CHAINS_MAX);
    assert_eq!((threads.uses.len(), threads.uses_by_client.len()), (count, count));
    assert!(threads.clients.len() <= count && threads.connections.len() <= count);
    let open = threads.jobs.len();
    assert!(open <= count);
    assert_eq!((threads.jobs_of_client.len(), threads.jobs_of_connection.len()), (open, open));
    let chains: usize = threads.threads.values().map(|thread| thread.chains.len()).sum();
    assert_eq!(threads.chains.len(), chains);
}

#[test]
fn a_conversation_goes_on_over_any_connection() {
    let mut world = World::default();
    let (first_job, first) = world.arrives(1, 1, &[1]);
    world.ends(first_job);
    assert_eq!((first.sign, first.follows), (Sign::New, None));
    let second = world.served(1, 2, &[1, 2, 3]);
    assert_eq!((second.sign, second.thread), (Sign::Conversation, first.thread));
    assert_eq!(second.follows, Some(Followed { job: first_job, gap_ms: 1_000, key: key() }));
    let moved = world.served(2, 3, &[1, 2, 3, 4, 5]);
    assert_eq!((moved.sign, moved.thread), (Sign::Conversation, first.thread));
}

/// A question asked twice, or put in other words, is no longer conversation but the same thread.
#[test]
fn an_answer_asked_for_again_is_the_same_thread() {
    let mut world = World::default();
    let first = world.served(1, 1, &[1]);
    world.served(1, 2, &[1, 2, 3]);
    for messages in [&[1, 2, 3], &[1, 2, 4]] {
        let again = world.served(1, 3, messages);
        assert_eq!((again.sign, again.thread), (Sign::Conversation, first.thread));
        assert!(again.follows.is_some());
    }
}

/// A script sends one and the same message again and again, all at once.
#[test]
fn equal_requests_do_not_continue_each_other() {
    let mut world = World::default();
    let jobs: Vec<_> = (1..=3).map(|number| world.arrives(1, number, &[1])).collect();
    for (job, arrival) in jobs {
        assert_eq!((arrival.sign, arrival.follows), (Sign::New, None));
        world.ends(job);
    }
    let (_, next) = world.arrives(1, 9, &[1]);
    assert_eq!(next.sign, Sign::New, "several were open a moment ago");
}

#[test]
fn a_fork_is_a_thread_of_its_own_and_goes_on_as_one() {
    let mut world = World::default();
    world.served(1, 1, &[1]);
    let (left_job, left) = world.arrives(1, 2, &[1, 2, 3]);
    let (right_job, right) = world.arrives(1, 3, &[1, 2, 4]);
    assert_eq!((left.sign, right.sign), (Sign::Conversation, Sign::New));
    assert_eq!(right.follows, None, "no job is followed twice");
    world.ends(right_job);
    world.ends(left_job);
    assert_eq!(world.served(1, 4, &[1, 2, 4, 5, 6]).thread, right.thread);
    assert_eq!(world.served(1, 5, &[1, 2, 3, 5, 6]).thread, left.thread);
}

/// Copies of one program send the same words; each goes on with its own.
#[test]
fn twins_are_told_apart_by_connection_and_client() {
    let mut world = World::default();
    let asked: Vec<_> =
        [(1, 1), (1, 2), (2, 3)].map(|(client, at)| world.arrives(client, at, &[1])).into();
    for (job, _) in &asked {
        world.ends(*job);
    }
    assert_eq!(world.arrives(1, 1, &[1, 2, 3]).1.thread, asked[0].1.thread, "same connection");
    assert_eq!(world.arrives(2, 9, &[1, 2, 3]).1.thread, asked[2].1.thread, "same client");
    assert_eq!(world.arrives(1, 8, &[1, 2, 3]).1.thread, asked[1].1.thread, "what is left");
}

#[test]
fn requests_without_messages_go_on_by_connection() {
    let mut world = World::default();
    let one = world.served(1, 1, &[]);
    let (_, other) = world.arrives(1, 2, &[]);
    assert_eq!(other.sign, Sign::Client, "the second connection is the first's follower");
    let again = world.served(1, 1, &[]);
    assert_eq!((again.sign, again.thread == one.thread), (Sign::New, false));
    assert_eq!(world.served(1, 1, &[]).sign, Sign::Connection);
}

/// Three agents on connections of their own, all open at once: each is a thread.
#[test]
fn agents_with_connections_are_threads() {
    let mut world = World::default();
    let mut open: Vec<_> = (1..=3).map(|at| (at, world.arrives(1, at, &[at]))).collect();
    for _ in 0..5 {
        for (at, (job, arrival)) in &mut open {
            world.ends(*job);
            let (next_job, next) = world.arrives(1, *at, &[100 + *at]);
            assert_eq!((next.sign, next.thread), (Sign::Connection, arrival.thread));
            assert_eq!(next.follows.as_ref().map(|followed| followed.job), Some(*job));
            (*job, *arrival) = (next_job, next);
        }
    }
}

/// A proxy's connection carries everybody.
#[test]
fn a_shared_connection_joins_no_clients() {
    let mut world = World::default();
    let first = world.served(1, 1, &[]);
    let second = world.served(2, 1, &[]);
    assert_eq!((second.sign, second.follows), (Sign::New, None));
    let back = world.served(1, 1, &[]);
    assert_eq!((back.sign, back.thread), (Sign::Client, first.thread));
}

/// A client that opens a connection for each request.
#[test]
fn a_closed_loop_is_seen_without_keep_alive() {
    let mut world = World::default();
    let first = world.served(1, 1, &[]);
    for connection in 2..6 {
        let next = world.served(1, connection, &[connection]);
        assert_eq!((next.sign, next.thread), (Sign::Client, first.thread));
        assert_eq!(next.follows.map(|followed| followed.gap_ms), Some(1_000));
    }
}

#[test]
fn a_client_with_several_jobs_open_is_no_loop_until_it_was_idle_twice() {
    let mut world = World::default();
    let (one, _) = world.arrives(1, 1, &[]);
    let (two, second) = world.arrives(1, 2, &[]);
    assert_eq!(second.sign, Sign::New);
    world.ends(one);
    let (three, third) = world.arrives(1, 3, &[]);
    assert_eq!(third.sign, Sign::New, "one is still open");
    world.ends(two);
    world.ends(three);
    assert_eq!(world.served(1, 4, &[]).sign, Sign::New);
    assert_eq!(world.served(1, 5, &[]).sign, Sign::Client);
}

#[test]
fn a_cancelled_job_is_not_followed_but_its_thread_goes_on() {
    let mut world = World::default();
    let first = world.served(1, 1, &[1]);
    let (job, second) = world.arrives(1, 2, &[1, 2, 3]);
    assert!(second.follows.is_some());
    world.threads.cancelled(job);
    let third = world.served(1, 3, &[1, 2, 3]);
    assert_eq!((third.sign, third.thread), (Sign::Conversation, first.thread));
    assert_eq!(third.follows, None);
    // What was cancelled was not served: nothing continues it.
    let (job, _) = world.arrives(2, 4, &[8]);
    world.threads.cancelled(job);
    assert_eq!(world.arrives(3, 5, &[8, 9]).1.sign, Sign::New);
}

#[test]
fn unknown_and_repeated_ends_and_a_clock_put_back_do_no_harm() {
    let mut world = World::default();
    world.threads.ended(JobId(Ulid::from_parts(0, 99)), 5, key());
    world.threads.cancelled(JobId(Ulid::from_parts(0, 99)));
    let (job, _) = world.arrives(1, 1, &[1]);
    world.ends(job);
    world.threads.ended(job, 9_999_999, key());
    world.threads.cancelled(job);
    world.now_ms = -5_000;
    let next = world.served(1, 1, &[1, 2]);
    assert_eq!(next.follows, Some(Followed { job, gap_ms: 0, key: key() }));
    // Told of twice, as after a client was attached to its job again.
    let whom = Whom { client: client(1), connection: 1 };
    let (job, _) = world.arrives(1, 1, &[1, 2, 3]);
    world.threads.arrived(0, job, &whom, &chain(&[1, 2, 3]));
    assert_limits(&world.threads);
    assert_eq!(world.threads.jobs.len(), 1);
}

/// A script with thousands of requests at once forgets its own.
#[test]
fn a_burst_does_not_push_others_out() {
    let mut world = World::default();
    let agent = world.served(1, 1, &[1]);
    let burst = u64::try_from(THREADS_MAX).unwrap() + 10;
    let jobs: Vec<_> = (0..burst).map(|at| world.arrives(2, 10 + at, &[at + 50]).0).collect();
    let own = world.threads.threads.values().filter(|thread| thread.whom.client == client(2));
    assert_eq!(own.count(), THREADS_PER_CLIENT_MAX);
    for job in jobs {
        world.ends(job);
    }
    assert_eq!(world.served(1, 2, &[1, 2, 3]).thread, agent.thread);
}

#[test]
fn the_least_recently_used_thread_goes_first() {
    let mut world = World::default();
    let number = |at: usize| u64::try_from(at).unwrap();
    for at in 0..THREADS_MAX {
        let job = JobId(Ulid::from_parts(1, u128::from(number(at))));
        let whom =
            Whom { client: ClientId::of(None, &at.to_string(), b""), connection: number(at) };
        world.threads.arrived(0, job, &whom, &chain(&[number(at)]));
        world.threads.ended(job, 0, key());
    }
    let first = world.served(1, 1_000_000, &[0, 1, 2]);
    assert_eq!(first.sign, Sign::Conversation);
    assert_eq!(world.served(2, 1_000_001, &[1_000_000]).sign, Sign::New);
    assert_eq!(world.served(3, 1_000_002, &[1, 2, 3]).sign, Sign::New, "it was the oldest");
    assert_eq!(world.served(1, 1_000_003, &[0, 1, 2, 3, 4]).thread, first.thread);
    assert_limits(&world.threads);
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Arrive { client: u8, connection: u64, messages: Vec<u64> },
    End(prop::sample::Index),
    Cancel(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let arrive = (0_u8..3, 0_u64..5, prop::collection::vec(0_u64..2, 0..5))
        .prop_map(|(client, connection, messages)| Step::Arrive { client, connection, messages });
    let step = prop_oneof![
        4 => arrive,
        3 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
    ];
    prop::collection::vec(step, 0..120)
}

/// What a history says of one job.
#[derive(Debug, Clone)]
struct Told {
    job: JobId,
    client: u8,
    connection: u64,
    messages: Vec<u64>,
    thread: ThreadId,
    ended_at_ms: Option<i64>,
    is_open: bool,
    is_followed: bool,
}

/// Checks an arrival against everything that was told before it.
fn judge(history: &mut [Told], now: &Told, now_ms: i64, arrival: &Arrival) {
    let is_begun_by = |told: &&Told| {
        !told.messages.is_empty()
            && told.messages.len() < now.messages.len()
            && now.messages.starts_with(&told.messages)
    };
    let served = history.iter().filter(|told| told.ended_at_ms.is_some());
    let continues = served.filter(is_begun_by).any(|told| told.thread == arrival.thread);
    let is_known = history.iter().any(|told| told.thread == arrival.thread);
    assert!(!history.iter().any(|told| told.is_open && told.thread == arrival.thread));
    let mut open = history.iter().filter(|told| told.is_open);
    match arrival.sign {
        Sign::New => assert!(!is_known && arrival.follows.is_none()),
        Sign::Conversation => assert!(continues),
        Sign::Connection => {
            assert!(!open.any(|told| told.connection == now.connection));
            let last = history.iter().rfind(|told| told.connection == now.connection).unwrap();
            assert_eq!((last.client, last.thread), (now.client, arrival.thread));
        }
        Sign::Client => {
            assert!(!open.any(|told| told.client == now.client));
            let last = history.iter().rfind(|told| told.client == now.client).unwrap();
            assert_eq!(last.thread, arrival.thread);
        }
    }
    let last = history.iter_mut().rfind(|told| told.thread == arrival.thread);
    let wanted = last.and_then(|told| {
        let gap_ms = u64::try_from(now_ms - told.ended_at_ms?).unwrap();
        assert!(!std::mem::replace(&mut told.is_followed, true), "followed twice");
        Some(Followed { job: told.job, gap_ms, key: key() })
    });
    assert_eq!(arrival.follows, wanted);
}

/// Lives a history; returns its arrivals.
fn live(steps: &[Step]) -> Vec<Arrival> {
    let mut world = World::default();
    let (mut history, mut arrivals): (Vec<Told>, Vec<Arrival>) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Arrive { client, connection, messages } => {
                let (job, arrival) = world.arrives(*client, *connection, messages);
                let told = Told {
                    job,
                    client: *client,
                    connection: *connection,
                    messages: messages.clone(),
                    thread: arrival.thread,
                    ended_at_ms: None,
                    is_open: true,
                    is_followed: false,
                };
                judge(&mut history, &told, world.now_ms, &arrival);
                history.push(told);
                arrivals.push(arrival);
            }
            Step::End(index) | Step::Cancel(index) => {
                let mut open: Vec<_> = history.iter_mut().filter(|told| told.is_open).collect();
                let place = index.index(open.len().max(1));
                let Some(told) = open.get_mut(place) else { continue };
                told.is_open = false;
                if matches!(step, Step::End(_)) {
                    world.ends(told.job);
                    told.ended_at_ms = Some(world.now_ms);
                } else {
                    world.threads.cancelled(told.job);
                    assert_limits(&world.threads);
                }
            }
        }
    }
    arrivals
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    /// Any history: each sign means what it says, a thread has one open job at most, no job is followed twice, and the
    /// same history gives the same answers.
    #[test]
    fn every_sign_keeps_its_word(steps in steps()) {
        prop_assert_eq!(live(&steps), live(&steps));
    }

    /// Agents whose conversations grow, in any order, on any connections of a shared pool: each stays one thread, and each
    /// of its steps follows on the one before.
    #[test]
    fn growing_conversations_are_never_mixed_up(
        turns in prop::collection::vec((0_usize..4, 0_u64..3, any::<bool>()), 1..80),
        is_one_client: bool,
    ) {
        let mut world = World::default();
        // Agents that have begun: a first request may well be taken for the next of another's loop.
        let mut agents: Vec<(Vec<u64>, Option<JobId>, ThreadId)> = (0..4_u8).map(|agent| {
            let number = u64::from(agent);
            let (job, arrival) = world.arrives(if is_one_client { 0 } else { agent }, 100 + number, &[number]);
            (vec![number], Some(job), arrival.thread)
        }).collect();
        for (agent, connection, is_at_once) in turns {
            let (messages, job, thread) = &mut agents[agent];
            let last = job.take().inspect(|job| world.ends(*job));
            messages.extend([1_000 + connection, 2_000]);
            let number = if is_one_client { 0 } else { u8::try_from(agent).unwrap() };
            let (next, arrival) = world.arrives(number, connection, messages);
            prop_assert_eq!((arrival.sign, arrival.thread), (Sign::Conversation, *thread));
            let followed = arrival.follows.map(|followed| followed.job);
            if last.is_some() {
                prop_assert_eq!(followed, last);
            } else {
                prop_assert!(followed.is_some());
            }
            if is_at_once { world.ends(next) } else { *job = Some(next) }
        }
    }
}
