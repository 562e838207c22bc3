//! Changing what is installed: create, copy, delete. None of it touches a runner.

use super::reply::Reply;
use super::transfer::{Step, progress};
use super::{Call, Failure};
use crate::config::Model;
use crate::fields::Fields;
use crate::json::Json;
use crate::names::Name;

fn name_of(raw: &str) -> Result<Name, Failure> {
    Name::parse(raw).map_err(|_| Failure::bad_request("invalid model name"))
}

/// Reads `model`, or the older `name`.
pub(super) fn model_or_name<'a>(fields: &Fields<'a>) -> Result<&'a str, Failure> {
    match fields.text("model").map_err(Failure::bad_request)? {
        "" => fields.text("name").map_err(Failure::bad_request),
        raw => Ok(raw),
    }
}

/// Answers `POST /api/create`: a new name on another model's weights, or on an uploaded blob.
pub(super) async fn create(call: &Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.CreateRequest")?;
    let streams = fields.bool("stream").map_err(Failure::bad_request)?.unwrap_or(true);
    let name = name_of(model_or_name(&fields)?)?;
    let from = fields.text("from").map_err(Failure::bad_request)?;
    let files = fields.object("files").map_err(Failure::bad_request)?;
    let mut model = if from.is_empty() {
        let digest = files.and_then(|files| files.fields().next()?.1.as_text());
        let digest = digest
            .ok_or_else(|| Failure::bad_request("neither 'from' or 'files' was specified"))?;
        Model::new(&name.to_string()).blob(&digest.replace(':', "-"))
    } else {
        let base = base(call, from)?;
        Model { name: name.to_string(), ..base }
    };
    let parameters = fields.object("parameters").map_err(Failure::bad_request)?;
    for (key, value) in parameters.iter().flat_map(|parameters| parameters.fields()) {
        let value = value.as_text().map_or_else(|| value.encode(), str::to_owned);
        model.parameters.retain(|(name, _)| name != key);
        model = model.parameter(key, &value);
    }
    if let Some(host) = fields.get("remote_host").and_then(Json::as_text) {
        model = model.remote(host);
    }
    let model = model.digest_of_contents();
    let steps = vec![
        Step::status(format!("using existing layer {}", model.blob.replace('-', ":"))),
        Step::status("writing manifest".to_owned()),
        Step::Install(Box::new(model)),
    ];
    progress(&call.world, steps, streams).await
}

fn base(call: &Call, from: &str) -> Result<Model, Failure> {
    let name = name_of(from)?;
    let catalog = call.world.catalog();
    let found = catalog.find(&name).map(|installed| Model::clone(&installed.model));
    let pullable = || {
        let wanted = |model: &&Model| {
            Name::parse(&model.name).is_ok_and(|candidate| candidate.key() == name.key())
        };
        call.world.config.pullable.iter().find(wanted).cloned()
    };
    found.or_else(pullable).ok_or_else(|| Failure::new(404, format!("model '{from}' not found")))
}

/// Answers `POST /api/copy`.
pub(super) fn copy(call: &Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.CopyRequest")?;
    let source = fields.text("source").map_err(Failure::bad_request)?;
    let destination = fields.text("destination").map_err(Failure::bad_request)?;
    let invalid =
        |kind: &str, raw: &str| Failure::bad_request(format!("{kind} \"{raw}\" is invalid"));
    let from = Name::parse(source).map_err(|_| invalid("source", source))?;
    let to = Name::parse(destination).map_err(|_| invalid("destination", destination))?;
    let now = call.world.clock.wall_ns();
    let mut catalog = call.world.catalog();
    let found = catalog.find(&from).map(|installed| Model::clone(&installed.model));
    let base = found.ok_or_else(|| Failure::new(404, format!("model \"{source}\" not found")))?;
    // The copy has the same manifest, hence the same digest and weights.
    catalog.install(Model { name: to.to_string(), ..base }, now);
    Ok(Reply::empty(200))
}

/// Answers `DELETE /api/delete`. A resident runner stays, and can no longer be named.
pub(super) fn delete(call: &Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.DeleteRequest")?;
    let raw = model_or_name(&fields)?;
    let name =
        Name::parse(raw).map_err(|_| Failure::bad_request(format!("name \"{raw}\" is invalid")))?;
    if call.world.catalog().remove(&name) {
        return Ok(Reply::empty(200));
    }
    Err(Failure::new(404, format!("model '{raw}' not found")))
}
