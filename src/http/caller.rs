//! Who was let in, and whose jobs he may see: put beside each request by the router, read by what answers it.

use std::sync::Arc;

use hyper::http::Extensions;

use crate::domain::job::Class;
use crate::domain::whom::ClientId;
use crate::keys::Key;

/// The sender of a request that was let in.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// `None` where foreman is open.
    key: Option<Arc<Key>>,
}

impl Caller {
    /// Anybody, where foreman is open.
    pub(super) fn anybody() -> Caller {
        Caller { key: None }
    }

    /// Whoever has this key.
    pub(super) fn with(key: Arc<Key>) -> Caller {
        Caller { key: Some(key) }
    }

    /// The sender of a request. One that the router did not see may do nothing and sees nothing.
    pub(super) fn of(extensions: &Extensions) -> Caller {
        extensions.get::<Caller>().cloned().unwrap_or_else(|| Caller::with(Arc::new(Key::nobody())))
    }

    /// Whose jobs are all he may see and act on; `None` is all jobs.
    pub(super) fn sees_only(&self) -> Option<String> {
        self.key.as_ref().filter(|key| !key.is_admin).map(|key| key.name.clone())
    }

    /// Whether this job's events are for him.
    pub(super) fn sees(&self, owner: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.is_admin || (key.name == owner && !owner.is_empty()))
    }

    /// Whose his jobs are; empty is nobody's.
    pub(super) fn owner(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.name)
    }

    /// His key.
    pub(super) fn key(&self) -> Option<&Key> {
        self.key.as_deref()
    }

    /// The class of a job of his.
    pub(super) fn class(&self, wanted: Option<Class>, default: Class) -> Class {
        match &self.key {
            Some(key) => key.class_of(wanted, default),
            None => wanted.unwrap_or(default),
        }
    }

    /// By what his requests are told from those of others when they come again; no token can be the same.
    pub(super) fn scope(&self) -> Option<String> {
        self.key.as_ref().filter(|key| !key.name.is_empty()).map(|key| format!("key:{}", key.name))
    }

    /// The one client that all programs with a named key are to the queue.
    pub(super) fn client(&self) -> Option<ClientId> {
        let key = self.key.as_ref().filter(|key| !key.name.is_empty());
        key.map(|key| ClientId::of_key(&key.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_seen_by_the_router_sees_nothing() {
        let nobody = Caller::of(&Extensions::new());
        assert!(!nobody.sees("") && !nobody.sees("alice"));
        assert_eq!(nobody.sees_only(), Some(String::new()));
        assert!(Caller::anybody().sees("") && Caller::anybody().sees_only().is_none());
    }
}
