//! What becomes of a job whose attempt did not end in a whole answer: tried again, given back, or failed. Pure.
//!
//! The promise behind it: never two generations spliced, never a truncated answer called done, and no job charged for
//! what was not its fault.

use super::job::{Counters, Kind};

/// How often one job may be disturbed by a dying daemon or upstream before it is suspected of causing it.
///
/// Crashes of a host come in ones and twos; a job that was in flight at sixteen of them is the likely reason.
pub const INTERRUPTIONS_MAX: u32 = 16;

/// How often one job may be put off by a busy upstream. With delays that grow to a minute this is over an hour.
pub const DEFERRALS_MAX: u32 = 100;

/// What went wrong in an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection could be made: the upstream never saw the request.
    Unreachable,
    /// The connection broke before the answer was whole, and the upstream does not answer now.
    UpstreamDied,
    /// The connection broke before the answer was whole, though the upstream lives.
    Cut,
    /// The answer ended cleanly, but without its end mark.
    Truncated,
    /// An error answer, or an error told inside a stream.
    Told(Told),
    /// Nothing came for longer than the idle limit.
    Silent,
    /// The load of its key took longer than its limit and was given up.
    LoadGivenUp,
    /// The load of its key failed. Tries of a load belong to the key, so what becomes of the job depends on who waits for it.
    NotLoaded(WaitedFor),
    /// Foreman's own disk could not note how far the job has come: no job is to blame for that.
    Unnoted,
    /// The answer grew beyond the limit for answers.
    TooLong,
    /// Foreman's own disk could not keep the answer.
    NoRoom,
    /// The deadline of the job passed: its answer is of no use.
    Late,
}

/// What an error of the upstream's says about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The request is at fault, or it would fail again.
    Final,
    /// It may go well the next time: 408, 425, 429, 502, 503, 504, or a runner that died.
    Passing,
    /// The upstream's own queue is full: nothing was tried.
    Busy,
}

/// Who waits for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitedFor {
    /// A client, on its connection. It gets the error at once, as Ollama would give it.
    Now,
    /// The job outlives its caller: it waits until its key loads.
    Later,
    /// Nobody: a restart has cut its client off, who may come back.
    Perhaps,
}

/// Whether a byte of the answer has reached a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// No byte was shown.
    Hidden,
    /// At least one byte was shown: a second generation must not follow it.
    Shown,
}

/// What to do with the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Put it back and charge this counter.
    Again(Charge),
    /// It has failed.
    Fail,
}

/// Which counter pays for going back to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// The attempt counted at the claim stands.
    Attempt,
    /// The attempt is given back, an interruption is counted.
    Interruption,
    /// The attempt is given back, a deferral is counted.
    Deferral,
    /// The attempt is given back and nothing is counted: an orderly stop.
    Nothing,
}

/// Judges a failed attempt. `counters` are those after the claim, so that the running attempt is counted in them.
pub fn judge(
    fault: Fault,
    kind: Kind,
    exposure: Exposure,
    counters: Counters,
    attempts_max: u32,
) -> Verdict {
    if exposure == Exposure::Shown {
        return Verdict::Fail;
    }
    match fault {
        // The upstream never saw it, so even an opaque request may wait and be sent once the upstream is back.
        Fault::Unreachable => Verdict::Again(Charge::Deferral),
        _ if kind == Kind::Opaque => Verdict::Fail,
        Fault::Told(Told::Busy) | Fault::NotLoaded(WaitedFor::Later)
            if counters.deferrals < DEFERRALS_MAX =>
        {
            Verdict::Again(Charge::Deferral)
        }
        Fault::UpstreamDied | Fault::Unnoted if counters.interruptions < INTERRUPTIONS_MAX => {
            Verdict::Again(Charge::Interruption)
        }
        Fault::Cut
        | Fault::Truncated
        | Fault::Silent
        | Fault::LoadGivenUp
        | Fault::NotLoaded(WaitedFor::Perhaps)
        | Fault::Told(Told::Passing)
            if counters.attempts < attempts_max =>
        {
            Verdict::Again(Charge::Attempt)
        }
        Fault::UpstreamDied
        | Fault::LoadGivenUp
        | Fault::NotLoaded(_)
        | Fault::Unnoted
        | Fault::Cut
        | Fault::Truncated
        | Fault::Silent
        | Fault::TooLong
        | Fault::NoRoom
        | Fault::Late
        | Fault::Told(_) => Verdict::Fail,
    }
}

/// What an error answer with this status and text says about trying again.
///
/// Ollama answers 500 also to bad options, so a 500 is only passing where the text tells of a dead runner.
pub fn told_by_status(status: u16, text: &str) -> Told {
    match status {
        503 if text.contains("server busy") => Told::Busy,
        408 | 425 | 429 | 502 | 503 | 504 => Told::Passing,
        500 if is_runner_death(text) => Told::Passing,
        _ => Told::Final,
    }
}

/// What an error told inside a stream, or instead of one, says about trying again.
pub fn told_by_text(text: &str) -> Told {
    if is_runner_death(text) { Told::Passing } else { Told::Final }
}

/// Whether an error text of Ollama's says that its runner died (its texts, over several versions).
fn is_runner_death(text: &str) -> bool {
    const SIGNS: [&str; 6] = [
        "unexpected EOF",
        "process has terminated",
        "process no longer running",
        "connection reset by peer",
        "connection refused",
        "broken pipe",
    ];
    SIGNS.iter().any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FAULTS: [Fault; 14] = [
        Fault::LoadGivenUp,
        Fault::NotLoaded(WaitedFor::Now),
        Fault::NotLoaded(WaitedFor::Later),
        Fault::NotLoaded(WaitedFor::Perhaps),
        Fault::Unreachable,
        Fault::UpstreamDied,
        Fault::Cut,
        Fault::Truncated,
        Fault::Told(Told::Final),
        Fault::Told(Told::Passing),
        Fault::Told(Told::Busy),
        Fault::Silent,
        Fault::TooLong,
        Fault::NoRoom,
    ];

    fn counters(attempts: u32) -> Counters {
        Counters { attempts, ..Counters::default() }
    }

    #[test]
    fn statuses_are_told_apart() {
        assert_eq!(told_by_status(404, "model 'x' not found"), Told::Final);
        assert_eq!(told_by_status(500, "option \"num_ctx\" must be of type integer"), Told::Final);
        let died = "llama-server process has terminated: signal: segmentation fault";
        assert_eq!(told_by_status(500, died), Told::Passing);
        let busy = "server busy, please try again.  maximum pending requests exceeded";
        assert_eq!(told_by_status(503, busy), Told::Busy);
        for status in [408, 425, 429, 502, 503, 504] {
            assert_eq!(told_by_status(status, ""), Told::Passing);
        }
    }

    #[test]
    fn a_job_is_not_charged_for_an_upstream_that_is_away() {
        let verdict = judge(Fault::Unreachable, Kind::Run, Exposure::Hidden, counters(3), 3);
        assert_eq!(verdict, Verdict::Again(Charge::Deferral));
    }

    /// A client hung for as long as its model was tried in vain; a job that outlives its caller has time.
    #[test]
    fn whose_key_does_not_load_is_told_if_somebody_waits() {
        let judged = |who, attempts| {
            judge(Fault::NotLoaded(who), Kind::Run, Exposure::Hidden, counters(attempts), 3)
        };
        assert_eq!(judged(WaitedFor::Now, 1), Verdict::Fail);
        assert_eq!(judged(WaitedFor::Later, 9), Verdict::Again(Charge::Deferral));
        assert_eq!(judged(WaitedFor::Perhaps, 2), Verdict::Again(Charge::Attempt));
        assert_eq!(judged(WaitedFor::Perhaps, 3), Verdict::Fail);
    }

    #[test]
    fn attempts_end() {
        let again = judge(Fault::Truncated, Kind::Run, Exposure::Hidden, counters(2), 3);
        assert_eq!(again, Verdict::Again(Charge::Attempt));
        let over = judge(Fault::Truncated, Kind::Run, Exposure::Hidden, counters(3), 3);
        assert_eq!(over, Verdict::Fail);
    }

    proptest! {
        /// Once a byte was shown nothing is tried again; an opaque request only if the upstream never saw it; and
        /// every counter that pays has an end.
        #[test]
        fn two_generations_are_never_spliced(
            fault in 0_usize..14, attempts in 1_u32..6, interruptions in 0_u32..40, deferrals in 0_u32..200,
        ) {
            let fault = FAULTS[fault];
            let counters = Counters { attempts, interruptions, deferrals };
            prop_assert_eq!(judge(fault, Kind::Run, Exposure::Shown, counters, 5), Verdict::Fail);
            if fault != Fault::Unreachable {
                prop_assert_eq!(judge(fault, Kind::Opaque, Exposure::Hidden, counters, 5), Verdict::Fail);
                let verdict = judge(fault, Kind::Run, Exposure::Hidden, counters, 5);
                match verdict {
                    Verdict::Again(Charge::Attempt) => prop_assert!(attempts < 5),
                    Verdict::Again(Charge::Interruption) => prop_assert!(interruptions < INTERRUPTIONS_MAX),
                    Verdict::Again(Charge::Deferral) => prop_assert!(deferrals < DEFERRALS_MAX),
                    Verdict::Again(Charge::Nothing) => prop_assert!(false, "nothing is for a stop"),
                    Verdict::Fail => (),
                }
            }
        }
    }
}
