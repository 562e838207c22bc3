//! From the name a client sent to an installed model, with each route's own error texts.

use std::sync::Arc;

use super::Failure;
use crate::config::{Capability, Cloud, Model};
use crate::fields::go_quote;
use crate::names::{Name, NameError, Source};
use crate::world::World;

/// How a route words "not found".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wording {
    /// `model 'x' not found`
    Plain,
    /// `model "x" not found, try pulling it first`
    PullFirst,
}

/// Finds a model; a cloud name becomes a remote model, or an error, by configuration.
pub(super) fn resolve(world: &World, raw: &str, wording: Wording) -> Result<Arc<Model>, Failure> {
    if raw.is_empty() {
        return Err(not_found(raw, wording));
    }
    let (name, source) = Name::parse_with_source(raw).map_err(|error| match error {
        NameError::Invalid => Failure::bad_request("invalid model name"),
        NameError::Contradictory(name) => Failure::bad_request(format!(
            "use either :local or :cloud, not both: {}",
            go_quote(&name)
        )),
    })?;
    if source == Source::Cloud {
        return cloud(world, raw);
    }
    let catalog = world.catalog();
    let found = catalog.find(&name).map(|installed| Arc::clone(&installed.model));
    found.ok_or_else(|| not_found(raw, wording))
}

fn not_found(raw: &str, wording: Wording) -> Failure {
    let text = match wording {
        Wording::Plain => format!("model '{raw}' not found"),
        Wording::PullFirst => {
            format!("model {} not found, try pulling it first", go_quote(raw))
        }
    };
    Failure::new(404, text)
}

fn cloud(world: &World, raw: &str) -> Result<Arc<Model>, Failure> {
    match world.config.cloud {
        Cloud::Unreachable => Err(Failure::new(
            502,
            "Post \"https://ollama.com:443/api/chat\": dial tcp: lookup ollama.com: no such host",
        )),
        Cloud::Disabled => {
            Err(Failure::new(403, "ollama cloud is disabled: remote inference is unavailable"))
        }
        Cloud::Answers => {
            let remote = Model::new(raw).remote("https://ollama.com:443");
            let capabilities = [Capability::Completion, Capability::Tools, Capability::Thinking];
            Ok(Arc::new(remote.with(&capabilities)))
        }
    }
}

/// Returns the full canonical name, as the capability errors print it.
pub(super) fn full_name(model: &Model) -> String {
    Name::parse(&model.name).map_or_else(|_| model.name.clone(), |name| name.full())
}

/// Refuses what the model cannot do. `raw` is the name as sent, `verb` what was asked.
pub(super) fn require(
    model: &Model,
    raw: &str,
    capability: Capability,
    verb: &str,
) -> Result<(), Failure> {
    if model.can(capability) {
        return Ok(());
    }
    let name = if capability == Capability::Tools { full_name(model) } else { go_quote(raw) };
    Err(Failure::bad_request(format!("{name} does not support {verb}")))
}
