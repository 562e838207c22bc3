//! Which class of a lane was served how long ago, so that an overdue class and the most urgent one take turns. Forgotten with
//! a restart: then the overdue one begins.

use std::collections::BTreeMap;

use crate::domain::job::Class;

/// Lanes remembered; the one served longest ago is forgotten first. A box has tens of load keys.
const LANES_MAX: usize = 256;

/// When the classes of each lane were served last.
#[derive(Debug, Clone, Default)]
pub struct Classes {
    /// Counts what was served.
    last: u64,
    lanes: BTreeMap<String, BTreeMap<Class, u64>>,
}

impl Classes {
    /// A job of this class in a lane is served.
    pub fn served(&mut self, lane: &str, class: Class) {
        self.last += 1;
        self.lanes.entry(lane.to_owned()).or_default().insert(class, self.last);
        if self.lanes.len() > LANES_MAX {
            let latest = |served: &BTreeMap<Class, u64>| served.values().max().copied();
            let oldest = self.lanes.iter().min_by_key(|(_, served)| latest(served));
            if let Some(lane) = oldest.map(|(lane, _)| lane.clone()) {
                self.lanes.remove(&lane);
            }
        }
    }

    /// The number of the last time this class was served in a lane; 0 if that is not known.
    pub fn last_served(&self, lane: &str, class: Class) -> u64 {
        self.lanes.get(lane).and_then(|served| served.get(&class)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_served_longest_ago_is_forgotten_first() {
        let mut classes = Classes::default();
        for lane in 0..=LANES_MAX {
            classes.served(&lane.to_string(), Class::Batch);
        }
        assert_eq!(classes.last_served("0", Class::Batch), 0);
        assert_eq!(classes.last_served("1", Class::Batch), 2);
        assert_eq!(classes.last_served("1", Class::Normal), 0);
    }
}
