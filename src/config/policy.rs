//! The rules of the scheduler out of what was typed: for the daemon, and for a replay, which needs nothing else.

use std::time::Duration;

use crate::domain::schedule::{Beside, Hold, Policy};

use super::classes::{MaxWait, max_wait};
use super::values::{HoldSetting, beside, hold, parallel};
use super::{Config, Fault, Faults, Raw};

/// The settings of the scheduler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) max_wait: [Duration; 3],
    pub(super) embed_wait: Duration,
    pub(super) hold: HoldSetting,
    pub(super) parallel: usize,
    pub(super) beside: Beside,
}

/// Reads the settings of the scheduler; all of them, so that all faults are collected.
pub(super) fn rules(raw: &Raw, faults: &mut Faults) -> Option<Rules> {
    let max_wait = faults.read("FOREMAN_MAX_WAIT", raw.max_wait.as_ref(), "2m", max_wait);
    let hold = faults.read("FOREMAN_HOLD", raw.hold.as_ref(), "auto", hold);
    let parallel = faults.read("FOREMAN_PARALLEL", raw.parallel.as_ref(), "1", parallel);
    let beside = faults.read("FOREMAN_BESIDE", raw.beside.as_ref(), "auto", beside);
    let MaxWait { by_class: max_wait, embed: embed_wait } = max_wait?;
    Some(Rules { max_wait, embed_wait, hold: hold?, parallel: parallel?, beside: beside? })
}

/// The rules of the scheduler by themselves; nothing else that was typed is looked at.
///
/// # Errors
/// Every fault of the settings of the scheduler.
pub fn policy(raw: &Raw) -> Result<Policy, Vec<Fault>> {
    let mut faults = Faults::default();
    rules(raw, &mut faults).map(Rules::policy).ok_or(faults.into_list())
}

impl Config {
    /// The rules of the scheduler.
    pub fn policy(&self) -> Policy {
        let Config { max_wait, embed_wait, hold, parallel, beside, .. } = *self;
        Rules { max_wait, embed_wait, hold, parallel, beside }.policy()
    }
}

impl Rules {
    fn policy(self) -> Policy {
        let millis = |wait: Duration| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Policy {
            max_wait_ms: self.max_wait.map(millis),
            embed_wait_ms: millis(self.embed_wait),
            hold: match self.hold {
                HoldSetting::Auto => Hold::Auto,
                HoldSetting::Off => Hold::Off,
                HoldSetting::For(wait) => Hold::Fixed { ms: millis(wait) },
            },
            parallel: self.parallel,
            beside: self.beside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_read_without_the_rest_and_their_faults_are_told_together() {
        assert_eq!(policy(&Raw::default()).unwrap(), Policy::default());
        let given = |text: &str| Some(text.to_owned());
        let raw = Raw { addr: given("nowhere"), max_wait: given("1m,batch=1h"), ..Raw::default() };
        assert_eq!(policy(&raw).unwrap().max_wait_ms, [60_000, 600_000, 3_600_000]);
        let raw = Raw { hold: given("maybe"), parallel: given("0"), ..Raw::default() };
        let keys: Vec<_> = policy(&raw).unwrap_err().iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["FOREMAN_HOLD", "FOREMAN_PARALLEL"]);
    }
}
