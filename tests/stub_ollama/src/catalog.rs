//! The installed models and blobs: what tags, show, pull, create, copy and delete work on.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Capability, Model};
use crate::json::{Json, Object};
use crate::names::Name;

/// Blobs remembered; each is one short string.
const BLOBS_MAX: usize = 10_000;
/// Installed models at once.
const MODELS_MAX: usize = 10_000;
const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// One installed model.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) model: Arc<Model>,
    key: String,
    pub(crate) modified_wall_ns: i128,
}

/// What is on the stub's disk. Newest model first, as `/api/tags` lists them.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    models: Vec<Installed>,
    blobs: BTreeSet<String>,
}

impl Catalog {
    /// Fills the disk; the first model is the newest, so that lists keep the given order.
    pub(crate) fn new(models: &[Model], now_wall_ns: i128) -> Self {
        let mut catalog = Self::default();
        for (age, model) in models.iter().rev().enumerate() {
            let older = i128::try_from(models.len() - age).unwrap_or(0) * NANOS_PER_SECOND;
            catalog.install(model.clone(), now_wall_ns - older);
        }
        catalog
    }

    pub(crate) fn find(&self, name: &Name) -> Option<&Installed> {
        let key = name.key();
        self.models.iter().find(|installed| installed.key == key)
    }

    pub(crate) fn models(&self) -> &[Installed] {
        &self.models
    }

    /// Adds or replaces a model.
    pub(crate) fn install(&mut self, model: Model, modified_wall_ns: i128) {
        let key = name_key(&model.name);
        self.models.retain(|installed| installed.key != key);
        self.models.truncate(MODELS_MAX - 1);
        self.add_blob(model.blob.clone());
        self.models.insert(0, Installed { model: Arc::new(model), key, modified_wall_ns });
    }

    /// Removes a model; its runner, if any, stays.
    pub(crate) fn remove(&mut self, name: &Name) -> bool {
        let key = name.key();
        let before = self.models.len();
        self.models.retain(|installed| installed.key != key);
        self.models.len() < before
    }

    pub(crate) fn has_blob(&self, blob: &str) -> bool {
        self.blobs.contains(blob)
    }

    pub(crate) fn add_blob(&mut self, blob: String) {
        if self.blobs.len() < BLOBS_MAX {
            self.blobs.insert(blob);
        }
    }
}

fn name_key(raw: &str) -> String {
    Name::parse(raw).map_or_else(|_| raw.to_lowercase(), |name| name.key())
}

/// The `details` object of tags, ps and show.
pub(crate) fn details(model: &Model) -> Object {
    Object::new()
        .with("parent_model", "")
        .with("format", "gguf")
        .with("family", model.family.as_str())
        .with("families", vec![Json::from(model.family.as_str())])
        .with("parameter_size", "138K")
        .with("quantization_level", "Q4_K_M")
}

/// The `capabilities` array, in Ollama's order.
pub(crate) fn capabilities(model: &Model) -> Json {
    let words = Capability::ALL.iter().filter(|capability| model.can(**capability));
    Json::Array(words.map(|capability| Json::from(capability.word())).collect())
}
