//! Who comes back, and who does not.

use super::*;

/// A request in three hours, per millisecond.
const RATE: f64 = 0.000_000_1;

fn at(curve: &[Absence], wait_ms: i64) -> f64 {
    curve.iter().take_while(|point| point.wait_ms <= wait_ms).last().unwrap().probability
}

/// A closed loop of `jobs` jobs of a client on a key, each 1 s long, with this think time; answers its end.
fn looping(returns: &mut Returns, client: &str, think_ms: i64, from_ms: i64, jobs: u128) -> i64 {
    let mut now_ms = from_ms;
    for job in 0..jobs {
        returns.arrived(job, Some(client), "a", now_ms);
        returns.ended(job, now_ms + 1_000);
        now_ms += 1_000 + think_ms;
    }
    now_ms - think_ms
}

#[test]
fn a_client_seen_returning_is_expected_and_a_new_one_is_not() {
    let mut returns = Returns::default();
    returns.arrived(1, Some("ann"), "a", 0);
    returns.ended(1, 1_000);
    assert!(at(&returns.absence("a", 1_000, 8_000, RATE), 8_010) > 0.99, "nothing is known yet");
    let learned = LearnedGap { source: "ann a".to_owned(), gap_ms: 500 };
    assert_eq!(returns.arrived(2, Some("ann"), "a", 1_500), Some(learned));
    assert!(at(&returns.absence("a", 1_500, 8_000, RATE), 8_010) > 0.99, "it waits itself");
    returns.ended(2, 2_500);
    assert!(at(&returns.absence("a", 2_500, 8_000, RATE), 1_000) < 0.4);
    assert!(at(&returns.absence("b", 2_500, 8_000, RATE), 8_010) > 0.99, "another key");
}

/// Three programs that look alike on three keys were never seen idle, and so never returning.
#[test]
fn what_a_client_does_on_other_keys_does_not_matter() {
    let mut returns = Returns::default();
    returns.arrived(100, Some("ann"), "b", 0);
    returns.arrived(101, Some("ann"), "c", 0);
    let end_ms = looping(&mut returns, "ann", 500, 0, 6);
    assert!(at(&returns.absence("a", end_ms, 8_000, RATE), 1_000) < 0.3);
    assert!(at(&returns.absence("b", end_ms, 8_000, RATE), 8_010) > 0.99, "its job is open");
}

/// Two programs that look alike on one key: the gap runs from the end of the last open job to the first request.
#[test]
fn look_alikes_on_one_key_are_one_source() {
    let mut returns = Returns::default();
    returns.arrived(1, Some("ann"), "a", 0);
    returns.arrived(2, Some("ann"), "a", 0);
    returns.ended(1, 1_000);
    assert_eq!(returns.arrived(3, Some("ann"), "a", 1_200), None, "one was open");
    returns.ended(2, 2_000);
    returns.ended(3, 3_000);
    let learned = returns.arrived(4, Some("ann"), "a", 3_400);
    assert_eq!(learned.map(|learned| learned.gap_ms), Some(400));
}

/// A program that sends another User-Agent with each request is a newcomer each time.
#[test]
fn a_loop_whose_identity_changes_is_told_by_the_newcomers() {
    let mut returns = Returns::default();
    let mut now_ms = 0;
    for job in 0..12_u128 {
        let learned = returns.arrived(job, Some(&format!("agent/{job}")), "a", now_ms);
        assert_eq!(
            learned.map(|learned| learned.source),
            (job > 0).then(|| "newcomers a".to_owned())
        );
        returns.ended(job, now_ms + 1_000);
        now_ms += 1_400;
    }
    assert!(at(&returns.absence("a", now_ms - 400, 8_000, RATE), 1_000) < 0.3);
}

/// The first request of a client counts among the newcomers, its second does not.
#[test]
fn a_client_that_came_back_is_no_newcomer() {
    let mut returns = Returns::default();
    returns.arrived(1, Some("ann"), "a", 0);
    returns.ended(1, 900);
    // Too few newcomers to tell how soon the next one comes: the rate says.
    let by_rate = |returns: &Returns| at(&returns.absence("a", 950, 8_000, 0.001), 8_010);
    assert!(by_rate(&returns) < 0.1);
    returns.arrived(2, Some("ann"), "a", 950);
    assert!(by_rate(&returns) > 0.99);
    returns.cancelled(2);
    assert!(by_rate(&returns) > 0.99, "no answer, no return");
}

/// An orchestrator that waits for its worker's model does not come back to its own meanwhile; look-alikes may.
#[test]
fn a_client_that_waits_for_another_key_is_expected_only_if_it_was_seen_to_ask_beside() {
    let ask = |returns: &mut Returns, job: u128, at_ms: i64| {
        returns.arrived(job, Some("ann"), "a", at_ms);
        returns.ended(job, at_ms + 1_000);
    };
    let mut returns = Returns::default();
    for job in 0..8 {
        ask(&mut returns, job, i64::try_from(job).unwrap() * 1_500);
    }
    returns.arrived(100, Some("ann"), "b", 11_600);
    let now = |returns: &Returns, at_ms: i64| at(&returns.absence("a", at_ms, 8_000, RATE), 1_000);
    assert!(now(&returns, 11_600) > 0.99);
    ask(&mut returns, 8, 12_000);
    assert!(now(&returns, 13_000) < 0.3, "another program of the same identity");
}

/// Three programs that look alike on one key: one of them is always expected, though the key never runs dry.
#[test]
fn answers_that_are_followed_on_while_others_wait_are_several_loops() {
    let mut returns = Returns::default();
    for job in 0..3 {
        returns.arrived(job, Some("ann"), "a", 0);
    }
    let mut now_ms = 0;
    for job in 0..40_u128 {
        now_ms += 1_000;
        returns.ended(job, now_ms);
        returns.arrived(job + 3, Some("ann"), "a", now_ms + 300);
    }
    assert!(at(&returns.absence("a", now_ms + 400, 8_000, RATE), 1_000) < 0.2);
    // A burst is followed on by nobody.
    let mut burst = Returns::default();
    for job in 0..40 {
        burst.arrived(job, Some("ann"), "a", 0);
    }
    for job in 0..30 {
        burst.ended(job, 1_000 + i64::try_from(job).unwrap());
    }
    assert!(at(&burst.absence("a", 2_000, 8_000, RATE), 1_000) > 0.99);
}

/// A few long gaps have no shape: such sources are waited for by how often somebody asks.
#[test]
fn a_source_that_mostly_stays_away_for_longer_is_judged_by_the_rate() {
    let mut returns = Returns::default();
    let end_ms = looping(&mut returns, "ann", 20_000, 0, 20);
    let curve = |rate: f64| at(&returns.absence("a", end_ms, 8_000, rate), 8_010);
    assert!(curve(0.0) > 0.99 && curve(0.000_1) > 0.4 && curve(0.001) < 0.01);
}

#[test]
fn a_source_that_is_idle_for_longer_than_ever_is_expected_less_and_then_given_up() {
    let mut returns = Returns::default();
    let end_ms = looping(&mut returns, "ann", 500, 0, 20);
    let fresh = at(&returns.absence("a", end_ms, 1_000, RATE), 1_010);
    let late = at(&returns.absence("a", end_ms + 30_000, 1_000, RATE), 1_010);
    assert!(fresh < 0.1 && late > 0.9, "{fresh} {late}");
    returns.arrived(99, None, "b", end_ms + GONE_AFTER_MS + 1);
    let gone = returns.sources.get(&Source::client("a", "ann")).unwrap();
    assert_eq!(gone.gaps_ms.back(), Some(&None));
    assert!(returns.answered.is_empty());
}

#[test]
fn curves_fall_and_stay_between_one_and_nothing() {
    let mut returns = Returns::default();
    for (job, gap_ms) in (0..40_u128).zip([100, 5_000, 900, 30_000].into_iter().cycle()) {
        let client = format!("{}", job % 3);
        returns.arrived(job, Some(&client), "a", i64::try_from(job).unwrap() * 40_000 + gap_ms);
        returns.ended(job, i64::try_from(job).unwrap() * 40_000 + 35_000);
    }
    let curve = returns.absence("a", 39 * 40_000 + 36_000, 8_000, RATE);
    assert!(curve.windows(2).all(|pair| pair[0].probability >= pair[1].probability));
    assert!(curve.iter().all(|point| (0.0..=1.0).contains(&point.probability)));
    assert!(curve.last().unwrap().probability < 1.0);
}

#[test]
fn sources_have_a_bound_and_what_is_forgotten_leaves_nothing_behind() {
    let mut returns = Returns::default();
    for job in 0..u128::try_from(SOURCES_MAX + 10).unwrap() {
        returns.arrived(job, Some(&job.to_string()), "a", 0);
        returns.ended(job, 1);
    }
    assert!(returns.sources.len() <= SOURCES_MAX && returns.uses.len() == returns.sources.len());
    assert!(returns.answered.len() <= EXPECTED_MAX && returns.open.is_empty());
    assert!(returns.answered.iter().all(|(_, source)| returns.sources.contains_key(source)));
}

#[test]
fn gaps_of_an_earlier_run_are_known_again() {
    let mut returns = Returns::default();
    for _ in 0..5 {
        returns.learn("ann a num_ctx=8", Some(300));
    }
    returns.arrived(1, Some("ann"), "a num_ctx=8", 0);
    returns.ended(1, 1_000);
    assert!(at(&returns.absence("a num_ctx=8", 1_000, 8_000, RATE), 1_000) < 0.3);
}
