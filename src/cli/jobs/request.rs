//! The body of a job from flags: a chat from a prompt, or foreman's fields laid beside a body that is given. Pure.
//!
//! A given body goes out byte for byte: what is added stands behind its last member, and an envelope is put around it.

use serde_json::{Map, Value, json};

/// A chat from flags.
#[derive(Debug, Default)]
pub(super) struct Chat<'a> {
    pub(super) model: &'a str,
    pub(super) prompt: &'a str,
    pub(super) system: Option<&'a str>,
    pub(super) options: &'a [(String, String)],
}

/// The native request of a chat.
pub(super) fn chat(chat: &Chat<'_>) -> Map<String, Value> {
    let mut messages = Vec::new();
    if let Some(system) = chat.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": chat.prompt }));
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(chat.model));
    body.insert("messages".to_owned(), json!(messages));
    if !chat.options.is_empty() {
        let options = chat.options.iter().map(|(key, value)| (key.clone(), value_of(value)));
        body.insert("options".to_owned(), Value::Object(options.collect()));
    }
    body
}

/// A number, `true` or `["a"]` are what they look like, any other text is a text.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

/// The metadata of `--metadata` and `--meta` together.
///
/// # Errors
/// What is allowed.
pub(super) fn metadata(
    object: Option<&str>,
    pairs: &[(String, String)],
) -> Result<Option<Value>, String> {
    let mut all = match object.map(serde_json::from_str) {
        None if pairs.is_empty() => return Ok(None),
        None => Map::new(),
        Some(Ok(Value::Object(all))) => all,
        Some(_) => return Err("--metadata: a JSON object".to_owned()),
    };
    for (key, value) in pairs {
        if all.insert(key.clone(), json!(value)).is_some() {
            return Err(format!("--meta {key}: this key was given before"));
        }
    }
    Ok(Some(Value::Object(all)))
}

/// Lays fields beside a body, or around it where an endpoint is named.
///
/// # Errors
/// Why that cannot be done.
pub(super) fn laid(
    body: &str,
    endpoint: Option<&str>,
    fields: Map<String, Value>,
) -> Result<String, String> {
    if endpoint.is_none() && fields.is_empty() {
        // As it is: the daemon says what is wrong with it.
        return Ok(body.to_owned());
    }
    let given: Value =
        serde_json::from_str(body).map_err(|fault| format!("the body is not JSON: {fault}"))?;
    let Value::Object(given) = given else { return Err("the body is no JSON object".to_owned()) };
    let body = body.trim();
    let (open, is_empty) = match endpoint {
        Some(endpoint) => (format!("{{\"endpoint\":{},\"body\":{body}", json!(endpoint)), false),
        None => {
            if let Some(name) = fields.keys().find(|name| given.contains_key(*name)) {
                return Err(format!("the body has a member {name}, and a flag says it too"));
            }
            // What serde read as an object ends with a brace.
            let open = body.strip_suffix('}').unwrap_or(body).trim_end();
            (open.to_owned(), given.is_empty())
        }
    };
    let added: Vec<String> =
        fields.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    let comma = if is_empty || added.is_empty() { "" } else { "," };
    Ok(format!("{open}{comma}{}}}", added.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn options_keep_their_kind() {
        let options =
            [("temperature".to_owned(), "0.5".to_owned()), ("stop".to_owned(), "end".to_owned())];
        let body = chat(&Chat { model: "m", prompt: "hi", system: Some("s"), options: &options });
        assert_eq!(
            Value::Object(body),
            json!({ "model": "m", "messages": [{ "role": "system", "content": "s" }, { "role": "user", "content": "hi" }],
                    "options": { "temperature": 0.5, "stop": "end" } })
        );
    }

    #[test]
    fn a_given_body_keeps_its_bytes() {
        let body = "{ \"model\" : \"m\",\"x\":1.0 }\n";
        let priority = fields(&json!({ "priority": "batch" }));
        assert_eq!(laid(body, None, Map::new()).unwrap(), body);
        assert_eq!(
            laid(body, None, priority.clone()).unwrap(),
            "{ \"model\" : \"m\",\"x\":1.0,\"priority\":\"batch\"}"
        );
        assert_eq!(
            laid(body, Some("/v1/responses"), priority.clone()).unwrap(),
            "{\"endpoint\":\"/v1/responses\",\"body\":{ \"model\" : \"m\",\"x\":1.0 },\"priority\":\"batch\"}"
        );
        assert_eq!(laid("{}", None, priority.clone()).unwrap(), "{\"priority\":\"batch\"}");
        assert!(laid("[1]", None, priority.clone()).is_err());
        assert!(
            laid("{\"priority\":\"normal\"}", None, priority).unwrap_err().contains("priority")
        );
    }

    #[test]
    fn metadata_comes_from_both_flags_and_no_key_twice() {
        let pairs = [("a".to_owned(), "1".to_owned())];
        assert_eq!(metadata(None, &[]).unwrap(), None);
        assert_eq!(metadata(Some("{\"b\":2}"), &pairs).unwrap(), Some(json!({ "b": 2, "a": "1" })));
        assert!(metadata(Some("{\"a\":2}"), &pairs).is_err());
        assert!(metadata(Some("[1]"), &[]).is_err());
    }
}
