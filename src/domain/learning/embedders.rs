//! Which models make room for an embedder and which embedders make room for others, by what is known to fit.
//!
//! An embedder is small, so it is tried beside everything, and everything beside it. Once it is known not to fit, it is a
//! model like any other: what was used last stays.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::domain::model::{LoadKey, ModelName};

use super::{Held, Learning, Models, Trials};

impl Learning {
    /// Which models must go before an embedder is loaded.
    pub fn victims_of_embedder(
        &self,
        wanted: &LoadKey,
        held: &[Held],
        models: &dyn Models,
        trials: Trials,
    ) -> Vec<ModelName> {
        let mut others: Vec<&Held> =
            held.iter().filter(|held| held.model != wanted.model).collect();
        others.sort_by_key(|held| {
            let used_ms = self.visits.of(&held.model).map_or(0, |visit| visit.dry_since_ms);
            (Reverse(used_ms), held.model.clone())
        });
        let trials = trials.count().unwrap_or(0);
        let identities = others.iter().map(|held| models.identity(&held.model));
        let kept = self.fits.keep(&models.identity(&wanted.model), [], identities, trials);
        let goes = |held: &&&Held| !kept.contains(&models.identity(&held.model));
        others.iter().filter(goes).map(|held| held.model.clone()).collect()
    }

    /// What an embedder is tried beside: everything, but for one that fitted beside nothing yet. That one would most likely push
    /// out the next model, too, and what fits is learned as well when a model is loaded beside the embedder.
    pub(super) fn embedder_trials(&self, wanted: &LoadKey, models: &dyn Models) -> Trials {
        match self.fits.never_fitted(&models.identity(&wanted.model)) {
            true => Trials::None,
            false => Trials::All,
        }
    }

    /// The identities of the embedders that stay beside a worker model, and those that have to go for it.
    pub(super) fn embedders_beside(
        &self,
        wanted: &LoadKey,
        held: &[Held],
        models: &dyn Models,
    ) -> (BTreeSet<String>, Vec<ModelName>) {
        let embedders = || held.iter().filter(|held| held.is_embedder);
        let identities = embedders().map(|held| models.identity(&held.model));
        let kept = self.fits.keep(&models.identity(&wanted.model), [], identities, usize::MAX);
        let goes = |held: &&Held| {
            held.model != wanted.model && !kept.contains(&models.identity(&held.model))
        };
        let victims = embedders().filter(goes).map(|held| held.model.clone()).collect();
        (kept, victims)
    }

    /// What is in memory and may be pushed out by the load of a key, as nobody knows that it fits.
    pub fn may_be_pushed_out(
        &self,
        wanted: &LoadKey,
        held: &[Held],
        models: &dyn Models,
    ) -> Vec<ModelName> {
        self.victims_of_embedder(wanted, held, models, Trials::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::learning::NamesOnly;
    use crate::domain::model::RunnerOptions;

    fn key(name: &str) -> LoadKey {
        LoadKey::new(ModelName::parse(name).unwrap().name, RunnerOptions::default())
    }

    fn held(name: &str) -> Held {
        Held { model: key(name).model, key: None, is_embedder: name.starts_with('e') }
    }

    fn saw(learning: &mut Learning, names: &[&str], fits: bool) {
        let set = names.iter().map(|name| key(name).model.to_string()).collect();
        learning.fits.observe(set, fits);
    }

    fn names(models: &[ModelName]) -> Vec<String> {
        models.iter().map(|model| model.to_string().replace(":latest", "")).collect()
    }

    #[test]
    fn an_embedder_makes_room_only_for_what_does_not_fit_beside_it() {
        let mut learning = Learning::default();
        let in_memory = [held("e")];
        let victims = |learning: &Learning, trials| {
            names(&learning.victims(Some(&key("a")), &in_memory, &NamesOnly, trials))
        };
        for trials in [Trials::Alone, Trials::None, Trials::One] {
            assert!(victims(&learning, trials).is_empty(), "nobody knows");
        }
        saw(&mut learning, &["a", "e"], false);
        for trials in [Trials::Alone, Trials::None, Trials::One] {
            assert_eq!(victims(&learning, trials), ["e"]);
        }
    }

    #[test]
    fn for_an_embedder_what_was_used_longest_ago_goes_first() {
        let mut learning = Learning::default();
        let in_memory = [held("a"), held("e1")];
        learning.see(&in_memory, &[], 1_000);
        learning.visits.worked(&key("a").model, 5_000);
        saw(&mut learning, &["a", "e1", "e2"], false);
        let victims = learning.victims_of_embedder(&key("e2"), &in_memory, &NamesOnly, Trials::All);
        assert_eq!(names(&victims), ["e1"]);
    }

    #[test]
    fn one_that_fitted_beside_nothing_is_not_tried_beside_the_next() {
        let mut learning = Learning::default();
        assert_eq!(learning.embedder_trials(&key("e"), &NamesOnly), Trials::All);
        saw(&mut learning, &["a", "e"], false);
        assert_eq!(learning.embedder_trials(&key("e"), &NamesOnly), Trials::None);
        saw(&mut learning, &["b", "e"], true);
        assert_eq!(learning.embedder_trials(&key("e"), &NamesOnly), Trials::All);
    }

    #[test]
    fn whatever_is_not_known_to_fit_may_be_pushed_out() {
        let mut learning = Learning::default();
        saw(&mut learning, &["a", "e1"], true);
        let in_memory = [held("e1"), held("e2"), held("a")];
        let out = learning.may_be_pushed_out(&key("a"), &in_memory, &NamesOnly);
        assert_eq!(names(&out), ["e2"]);
    }
}
