//! Server-sent events as they come (the event stream of the HTML standard, as much of it as foreman sends). Pure.

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// Such as `job.done`; empty where none is given.
    pub(super) kind: String,
    pub(super) data: String,
}

/// Puts events together. It outlives a connection: the last id is kept, half an event is not.
#[derive(Debug, Default)]
pub(super) struct Reader {
    held: Vec<u8>,
    next: Event,
    next_id: Option<String>,
    /// The id of the last whole event that had one, for `Last-Event-ID`.
    pub(super) last_id: Option<String>,
}

impl Reader {
    /// One that goes on behind an event.
    pub(super) fn behind(last_id: Option<String>) -> Reader {
        Reader { last_id, ..Reader::default() }
    }

    /// A new connection begins: what was half read is sent again.
    pub(super) fn reconnect(&mut self) {
        *self = Reader::behind(self.last_id.take());
    }

    /// Takes the next bytes; the events that are whole with them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.held.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.held);
            let line = String::from_utf8_lossy(&line);
            events.extend(self.line(line.strip_suffix('\r').unwrap_or(&line)));
        }
        events
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            if let Some(id) = self.next_id.take() {
                self.last_id = Some(id);
            }
            let event = std::mem::take(&mut self.next);
            return (!event.data.is_empty()).then_some(event);
        }
        // A comment has an empty name.
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.next_id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.next.kind),
            "data" => {
                if !self.next.data.is_empty() {
                    self.next.data.push('\n');
                }
                self.next.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_when_it_is_whole_and_comments_do_not() {
        let mut reader = Reader::default();
        let kinds =
            |events: Vec<Event>| events.into_iter().map(|event| event.kind).collect::<Vec<_>>();
        let first =
            reader.take(b": hello\n\nid: 7\nevent: job.queued\ndata: {}\n\nid: 8\nevent: job");
        assert_eq!(kinds(first), ["job.queued"]);
        assert_eq!(reader.last_id.as_deref(), Some("7"));
        assert_eq!(kinds(reader.take(b".done\r\ndata: a\r\ndata: b\r\n\r\n")), ["job.done"]);
        assert_eq!(reader.last_id.as_deref(), Some("8"));
        reader.take(b"id: 9\nevent: job.failed\ndata: {}\n");
        reader.reconnect();
        assert_eq!(reader.last_id.as_deref(), Some("8"));
        // An id without data moves the place (a place to come back to before the first event).
        assert!(reader.take(b"id: 12\n\n").is_empty());
        assert_eq!(reader.last_id.as_deref(), Some("12"));
    }

    #[test]
    fn progress_has_no_id_and_leaves_the_place() {
        let mut reader = Reader::behind(Some("4".to_owned()));
        let events = reader.take(b"event: job.progress\ndata: {\"tokens\":3}\n\n");
        assert_eq!(
            (events[0].data.as_str(), reader.last_id.as_deref()),
            ("{\"tokens\":3}", Some("4"))
        );
    }
}
