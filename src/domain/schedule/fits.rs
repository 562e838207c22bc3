//! Which models fit in memory beside each other, as learned from what happened: sets seen together, and sets of which
//! Ollama dropped one.
//!
//! A model is known by its digest, so that a model pulled anew is learned anew.

use std::collections::BTreeSet;

/// Sets remembered; the oldest is forgotten first. A box has tens of models and holds a few at a time.
const SETS_MAX: usize = 512;

/// Whether a set of models fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was seen in memory together, or is part of one that was.
    Fits,
    /// It was tried and one had to go, or it holds such a set.
    DoesNot,
    /// Nobody knows.
    Untried,
}

/// What is known about sets of models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fits {
    sets: Vec<(BTreeSet<String>, bool)>,
}

impl Fits {
    /// What is known about a set. One model alone always fits as far as this is concerned.
    pub fn judge(&self, set: &BTreeSet<String>) -> Verdict {
        if set.len() < 2 {
            return Verdict::Fits;
        }
        // Later observations count more: memory is added, or taken by something else.
        for (known, fits) in self.sets.iter().rev() {
            if *fits && set.is_subset(known) {
                return Verdict::Fits;
            }
            if !*fits && known.is_subset(set) {
                return Verdict::DoesNot;
            }
        }
        Verdict::Untried
    }

    /// Whether a model failed beside a single other one and was never seen beside any: one more trial would most likely fail,
    /// too.
    pub fn never_fitted(&self, name: &str) -> bool {
        let with_it = || self.sets.iter().filter(|(set, _)| set.contains(name));
        with_it().all(|(_, fits)| !fits) && with_it().any(|(set, _)| set.len() == 2)
    }

    /// Takes an observation in; whether it told something new.
    pub fn observe(&mut self, set: BTreeSet<String>, fits: bool) -> bool {
        let known = if fits { Verdict::Fits } else { Verdict::DoesNot };
        if set.len() < 2 || self.judge(&set) == known {
            return false;
        }
        self.sets.retain(|(other, _)| *other != set);
        self.sets.push((set, fits));
        if self.sets.len() > SETS_MAX {
            self.sets.remove(0);
        }
        true
    }

    /// Which of `resident` can stay while `wanted` is loaded beside `fixed` (the embedders, which never go). `resident` is in
    /// order of preference, most wanted first. Of those never tried beside it, `trials` may stay.
    pub fn keep(
        &self,
        wanted: &str,
        fixed: impl IntoIterator<Item = String>,
        resident: impl IntoIterator<Item = String>,
        trials: usize,
    ) -> BTreeSet<String> {
        let mut set: BTreeSet<String> = fixed.into_iter().collect();
        set.insert(wanted.to_owned());
        let mut kept = BTreeSet::new();
        let mut trials = trials;
        for name in resident {
            let mut larger = set.clone();
            larger.insert(name.clone());
            let stays = match self.judge(&larger) {
                Verdict::Fits => true,
                Verdict::DoesNot => false,
                Verdict::Untried => trials > 0,
            };
            if stays {
                trials -= usize::from(self.judge(&larger) == Verdict::Untried);
                set = larger;
                kept.insert(name);
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn parts_of_what_fits_fit_and_wholes_around_what_does_not_do_not() {
        let mut fits = Fits::default();
        assert!(fits.observe(set(&["a", "b", "c"]), true));
        assert!(!fits.observe(set(&["a", "c"]), true), "nothing new");
        assert!(fits.observe(set(&["a", "d"]), false));
        assert_eq!(fits.judge(&set(&["a", "b"])), Verdict::Fits);
        assert_eq!(fits.judge(&set(&["a", "b", "d"])), Verdict::DoesNot);
        assert_eq!(fits.judge(&set(&["b", "d"])), Verdict::Untried);
        assert_eq!(fits.judge(&set(&["d"])), Verdict::Fits);
    }

    #[test]
    fn the_last_observation_counts() {
        let mut fits = Fits::default();
        fits.observe(set(&["a", "b"]), true);
        fits.observe(set(&["a", "b"]), false);
        assert_eq!(fits.judge(&set(&["a", "b"])), Verdict::DoesNot);
        fits.observe(set(&["a", "b", "c"]), true);
        assert_eq!(fits.judge(&set(&["a", "b"])), Verdict::Fits);
    }

    fn keep(fits: &Fits, trials: usize) -> BTreeSet<String> {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        fits.keep("n", names(&["e"]), names(&["a", "b"]), trials)
    }

    #[test]
    fn one_untried_neighbour_is_tried_at_a_time() {
        let mut fits = Fits::default();
        assert_eq!(keep(&fits, 0), set(&[]));
        assert_eq!(keep(&fits, 1), set(&["a"]));
        fits.observe(set(&["a", "n"]), false);
        assert_eq!(keep(&fits, 1), set(&["b"]));
        fits.observe(set(&["b", "e", "n"]), false);
        assert_eq!(keep(&fits, 1), set(&[]));
    }
}
