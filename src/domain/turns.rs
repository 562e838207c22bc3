//! Turns: in which order the jobs of one lane and class are served when several clients have some. Pure.
//!
//! Fair queueing by start time (Goyal, Vin and Cheng, 1996), with a job as the unit: the clients take turns, one job each in
//! a round, and a client's own jobs go by arrival. Who comes anew joins the round after the one under way, behind those
//! who were there: it waits for one job of each, and to have been away earns nothing. One client alone is served by arrival.
//!
//! `replay` serves by this. The daemon's queue is on disk and follows the same rules in SQL (`store::turns`), checked
//! against this in its tests. ADR 0021 says why.

use std::collections::{BTreeMap, BTreeSet};

/// The ready jobs of a lane and class, by arrival number, and whose turn it is.
#[derive(Debug, Clone)]
pub struct Turns<C> {
    /// The round under way: the highest of which a job was taken.
    round: i64,
    clients: BTreeMap<C, Turn>,
}

/// A client that has ready jobs.
#[derive(Debug, Clone)]
struct Turn {
    /// In which round its next job goes.
    round: i64,
    /// The arrival number of the oldest job with which it came: the order inside a round.
    since: i64,
    /// Never empty.
    jobs: BTreeSet<i64>,
}

impl<C> Default for Turns<C> {
    fn default() -> Turns<C> {
        Turns { round: 0, clients: BTreeMap::new() }
    }
}

impl<C: Ord + Clone> Turns<C> {
    /// A job of a client is ready.
    pub fn enter(&mut self, client: C, seq: i64) {
        let anew = Turn { round: self.round + 1, since: seq, jobs: BTreeSet::new() };
        let turn = self.clients.entry(client).or_insert(anew);
        turn.since = turn.since.min(seq);
        turn.jobs.insert(seq);
    }

    /// A job of a client waits no more, and was not served.
    pub fn leave(&mut self, client: &C, seq: i64) {
        let Some(turn) = self.clients.get_mut(client) else { return };
        turn.jobs.remove(&seq);
        if turn.jobs.is_empty() {
            self.clients.remove(client);
        }
    }

    /// The job to serve next.
    pub fn next(&self) -> Option<i64> {
        self.clients.get(self.first()?)?.jobs.first().copied()
    }

    /// Takes the job to serve next, and its client's turn with it.
    pub fn take(&mut self) -> Option<i64> {
        let client = self.first()?.clone();
        let turn = self.clients.get_mut(&client)?;
        self.round = self.round.max(turn.round);
        turn.round = self.round + 1;
        let seq = turn.jobs.pop_first()?;
        self.leave(&client, seq);
        Some(seq)
    }

    /// Takes the oldest job, whoever's turn it is.
    pub fn take_oldest(&mut self) -> Option<i64> {
        let seq = self.oldest()?;
        let client = self.clients.iter().find(|(_, turn)| turn.jobs.contains(&seq))?.0.clone();
        self.leave(&client, seq);
        Some(seq)
    }

    /// The job that arrived first.
    pub fn oldest(&self) -> Option<i64> {
        self.clients.values().filter_map(|turn| turn.jobs.first()).min().copied()
    }

    /// The job that arrived last.
    pub fn newest(&self) -> Option<i64> {
        self.clients.values().filter_map(|turn| turn.jobs.last()).max().copied()
    }

    /// How many jobs there are.
    pub fn jobs(&self) -> usize {
        self.clients.values().map(|turn| turn.jobs.len()).sum()
    }

    /// The client whose turn it is.
    fn first(&self) -> Option<&C> {
        let by_turn = self.clients.iter().min_by_key(|(_, turn)| (turn.round, turn.since));
        by_turn.map(|(client, _)| client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(turns: &mut Turns<char>) -> Vec<i64> {
        std::iter::from_fn(|| turns.take()).collect()
    }

    #[test]
    fn one_client_is_served_by_arrival() {
        let mut turns = Turns::default();
        for seq in [3, 1, 2] {
            turns.enter('a', seq);
        }
        assert_eq!(taken(&mut turns), [1, 2, 3]);
    }

    #[test]
    fn clients_with_one_job_each_are_served_by_arrival() {
        let mut turns = Turns::default();
        for (client, seq) in [('c', 1), ('a', 2)] {
            turns.enter(client, seq);
        }
        assert_eq!(turns.take(), Some(1));
        turns.enter('b', 3);
        turns.enter('c', 4);
        assert_eq!(taken(&mut turns), [2, 3, 4]);
    }

    #[test]
    fn a_few_of_one_client_are_not_buried_under_the_many_of_another() {
        let mut turns = Turns::default();
        for seq in 0..1_000 {
            turns.enter('a', seq);
        }
        for seq in 0..10 {
            assert_eq!(turns.take(), Some(seq));
        }
        turns.enter('b', 1_000);
        turns.enter('b', 1_001);
        let order: Vec<i64> = taken(&mut turns).into_iter().take(5).collect();
        assert_eq!(order, [10, 1_000, 11, 1_001, 12]);
    }

    /// Jobs that were never served must not count: the rest of a client that cancelled most of what it had is not last.
    #[test]
    fn cancelled_jobs_cost_their_client_no_turn() {
        let mut turns = Turns::default();
        for seq in 0..100 {
            turns.enter('a', seq);
        }
        for seq in 0..99 {
            turns.leave(&'a', seq);
        }
        for seq in 100..110 {
            turns.enter('b', seq);
        }
        assert_eq!(taken(&mut turns)[..3], [99, 100, 101]);
    }

    /// A step: a job of this client comes, or one is served.
    fn steps() -> impl Strategy<Value = Vec<Option<char>>> {
        prop::collection::vec(prop::option::weighted(0.6, prop::char::range('a', 'e')), 1..200)
    }

    proptest! {
        /// Between two jobs of a client that waits throughout, every other is served at most twice, whatever comes and goes:
        /// nobody gains by having been away, by coming often, or by having many.
        #[test]
        fn whoever_waits_is_passed_over_at_most_twice_by_each(steps in steps()) {
            let mut turns = Turns::default();
            let mut owners = Vec::new();
            let mut passed: BTreeMap<char, BTreeMap<char, u32>> = BTreeMap::new();
            for step in steps {
                if let Some(client) = step {
                    turns.enter(client, i64::try_from(owners.len()).unwrap());
                    owners.push(client);
                    passed.entry(client).or_default();
                    continue;
                }
                let Some(seq) = turns.take() else { continue };
                let served = owners[usize::try_from(seq).unwrap()];
                passed.remove(&served);
                if turns.clients.contains_key(&served) {
                    passed.entry(served).or_default();
                }
                for by in passed.iter_mut().filter(|(client, _)| **client != served).map(|(_, by)| by) {
                    let times = by.entry(served).or_default();
                    *times += 1;
                    prop_assert!(*times <= 2);
                }
            }
        }
    }
}
