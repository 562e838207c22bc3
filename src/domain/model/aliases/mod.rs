//! Which installed names share a runner, and the one name of each such set that foreman loads by.
//!
//! Jobs of all names of a set get one load key, so that they drain together and nothing is loaded
//! twice. Pure: the inventory makes it anew whenever it has learned something, placement and
//! residency ask it.

use std::collections::HashMap;

use super::{LoadKey, ModelName, Modelfile, RunnerOptions, Weights};

/// The installed names whose files are known. A name that is not among them stands for itself.
#[derive(Debug, Clone, Default)]
pub struct Aliases {
    by_name: HashMap<ModelName, Named>,
    /// The names of each set of files, the preferred one first.
    by_weights: HashMap<Weights, Vec<ModelName>>,
}

#[derive(Debug, Clone)]
struct Named {
    file: Modelfile,
    representative: ModelName,
}

impl Aliases {
    /// Sorts the installed models into sets that share a runner.
    ///
    /// The representative of a name is, among the names whose file can stand for its own, the one
    /// with the fewest options; of those one that was a representative in `former`, so that a copy
    /// does not take the place of what is resident and queued for; then the alphabetically first.
    #[must_use]
    pub fn of(models: Vec<(ModelName, Modelfile)>, former: &Self) -> Self {
        let mut ordered = models;
        ordered.sort_by_cached_key(|(name, file)| {
            let was_representative = former.representative_if_known(name) == Some(name);
            (file.options.normalised().given().count(), !was_representative, name.clone())
        });
        let mut aliases = Self::default();
        for (name, file) in ordered {
            // What could stand for it has no more options than it, so it is in already.
            let found = aliases.standing_for(&file).cloned();
            let representative = found.unwrap_or_else(|| name.clone());
            aliases.by_weights.entry(file.weights.clone()).or_default().push(name.clone());
            aliases.by_name.insert(name, Named { file, representative });
        }
        aliases
    }

    /// The name that the jobs of `name` are loaded by; `name` itself where nothing is known of it.
    #[must_use]
    pub fn representative<'a>(&'a self, name: &'a ModelName) -> &'a ModelName {
        self.representative_if_known(name).unwrap_or(name)
    }

    /// The name that a runner with this file goes by, be it loaded under a name that is gone since.
    #[must_use]
    pub fn standing_for(&self, file: &Modelfile) -> Option<&ModelName> {
        let names = self.by_weights.get(&file.weights)?;
        names
            .iter()
            .find(|name| self.by_name.get(*name).is_some_and(|named| named.file.stands_for(file)))
    }

    /// The key of a job of `name` that asks for these options.
    ///
    /// A runner loaded with exactly this key serves the job without a reload. Asking with the
    /// options of a key again gives an equal key.
    #[must_use]
    pub fn load_key(&self, name: &ModelName, asked: RunnerOptions) -> LoadKey {
        let Some(named) = self.by_name.get(name) else {
            return LoadKey::new(name.clone(), asked);
        };
        let loaded = self.by_name.get(&named.representative).map_or(&named.file, |it| &it.file);
        named.file.load_key(&named.representative, loaded, asked)
    }

    /// What a request to `name` must say to make `key` resident, for the name to be the one that `/api/ps` shows; `None`
    /// where a load by that name would make another runner, or nothing is known of it.
    #[must_use]
    pub fn options_to_load_as(&self, name: &ModelName, key: &LoadKey) -> Option<RunnerOptions> {
        let named = self.by_name.get(name).filter(|named| named.representative == key.model)?;
        let options = named.file.over_the_file(key.options);
        (self.load_key(name, options) == *key).then_some(options)
    }

    fn representative_if_known(&self, name: &ModelName) -> Option<&ModelName> {
        self.by_name.get(name).map(|named| &named.representative)
    }
}

#[cfg(test)]
mod tests;
