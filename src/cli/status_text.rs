//! The status document for people: readable in 80 columns, without colour.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

/// Columns of a line.
const WIDTH: usize = 80;

/// Lanes and jobs shown; the document has them all.
const ROWS_MAX: usize = 20;

/// The whole page.
pub(super) fn render(document: &Value, addr: SocketAddr) -> String {
    let mut page = Page::default();
    let now = millis(&document["now"]);
    let up = now - millis(&document["started_at"]);
    let draining = if document["is_draining"] == true { ", stopping" } else { "" };
    page.line(&format!(
        "foreman {} on {addr}, up {}{draining}",
        text(&document["version"]),
        age(up)
    ));
    upstream(&mut page, &document["upstream"], now);
    resident(&mut page, document, now);
    broken(&mut page, document, now);
    running(&mut page, document);
    queue(&mut page, document, now);
    disk(&mut page, &document["disk"]);
    loads(&mut page, &document["loads"]);
    let counts = &document["since_start"];
    let count = |name: &str| counts[name].as_u64().unwrap_or(0);
    page.line(&format!(
        "since start  {} loads ({} swaps), {} done, {} failed, {} cancelled, {} retries",
        count("loads"),
        count("swaps"),
        count("done"),
        count("failed"),
        count("cancelled"),
        count("retries")
    ));
    webhooks(&mut page, &document["webhooks"]);
    dead_letters(&mut page, &document["stored"]);
    page.into_text()
}

/// Nothing where there is room: that is how it should be.
fn disk(page: &mut Page, disk: &Value) {
    const MIB: u64 = 1024 * 1024;
    let mib = |name: &str| disk[name].as_u64().unwrap_or(0) / MIB;
    if disk["has_room"] == false {
        page.line(&format!(
            "disk         full: {} MiB free, {} MiB needed; new jobs are refused",
            mib("free_bytes"),
            mib("free_min_bytes")
        ));
    }
}

/// A page as it grows.
#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    /// The text of the page.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// Adds a sentence, broken between words, each line after the indent.
    pub(super) fn wrapped(&mut self, indent: &str, sentence: &str) {
        let mut line = indent.to_owned();
        for word in sentence.split(' ') {
            let is_full = line.chars().count() + 1 + word.chars().count() > WIDTH;
            if is_full && line.len() > indent.len() {
                self.line(&line);
                line = indent.to_owned();
            }
            if line.len() > indent.len() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&line);
    }

    /// Adds a line, cut at the width.
    pub(super) fn line(&mut self, line: &str) {
        if line.chars().count() > WIDTH {
            self.0.extend(line.chars().take(WIDTH - 1));
            self.0.push('…');
        } else {
            self.0.push_str(line.trim_end());
        }
        self.0.push('\n');
    }
}

fn upstream(page: &mut Page, upstream: &Value, now: i64) {
    let url = text(&upstream["url"]);
    let since = age(now - millis(&upstream["since"]));
    match upstream["state"].as_str() {
        Some("up") => {
            let version = text(&upstream["version"]);
            let models =
                upstream["models"].as_u64().map_or(String::new(), |n| format!(", {n} models"));
            page.line(&format!("ollama       {url} is up for {since} (version {version}{models})"));
        }
        Some("down") => {
            page.line(&format!("ollama       {url} is DOWN for {since}; jobs wait"));
            page.wrapped("             ", &text(&upstream["reason"]));
        }
        _ => page.line(&format!("ollama       {url} was not reached yet")),
    }
}

fn resident(page: &mut Page, document: &Value, now: i64) {
    let entries = items(&document["resident"]);
    if entries.is_empty() {
        page.line("resident     nothing");
    }
    for (index, entry) in entries.iter().enumerate() {
        let label = if index == 0 { "resident" } else { "" };
        let known = entry["key"].as_str();
        let name = known.map_or_else(|| text(&entry["model"]), str::to_owned);
        let note = match (known, entry["is_embedder"] == true) {
            (_, true) => ", embeddings",
            (None, false) => ", not loaded by foreman",
            (Some(_), false) => "",
        };
        let since = age(now - millis(&entry["since"]));
        page.line(&format!("{label:<12} {name} for {since}{note}"));
    }
}

/// Whether the document leaves out what belongs to other keys.
fn is_partial(document: &Value) -> bool {
    document["key"]["is_admin"] == false
}

/// Nothing where every model loads: that is how it should be.
fn broken(page: &mut Page, document: &Value, now: i64) {
    for open in items(&document["broken"]) {
        page.line(&format!("broken       {}", text(&open["lane"])));
        let tries = open["failures"].as_u64().unwrap_or(0);
        let next = age(millis(&open["until"]) - now);
        let sentence = format!(
            "its load failed, {tries} in a row, and is tried again in {next}: {}",
            text(&open["error"])
        );
        page.wrapped("             ", &sentence);
    }
}

fn running(page: &mut Page, document: &Value) {
    let jobs = items(&document["running"]);
    if jobs.is_empty() {
        let whose = if is_partial(document) { " of yours" } else { "" };
        page.line(&format!("running      nothing{whose}"));
    }
    for job in jobs {
        page.line(&format!("running      {} {}", text(&job["id"]), text(&job["lane"])));
        page.line(&format!(
            "             {} for {} after waiting {}, attempt {}, {} bytes so far",
            text(&job["state"]),
            age(job["running_for_ms"].as_i64().unwrap_or(0)),
            age(job["queued_for_ms"].as_i64().unwrap_or(0)),
            job["attempt"],
            job["answer_bytes"]
        ));
    }
}

fn queue(page: &mut Page, document: &Value, now: i64) {
    let queue = &document["queue"];
    let depth = queue["depth"].as_u64().unwrap_or(0);
    let lanes = items(&queue["lanes"]);
    let scheduled = match queue["scheduled"].as_u64() {
        Some(scheduled) if scheduled > 0 => format!(" ({scheduled} more for later)"),
        _ => String::new(),
    };
    if depth == 0 {
        page.line(&format!("queue        empty{scheduled}"));
        return;
    }
    if is_partial(document) {
        page.line(&format!(
            "queue        {depth} waiting{scheduled}, those of other keys included"
        ));
        page.line("             yours: foreman jobs list --state queued");
        return;
    }
    page.line(&format!("queue        {depth} waiting{scheduled}, in this order of load keys:"));
    page.line("             #  waiting  oldest  load key");
    for lane in lanes.iter().take(ROWS_MAX) {
        let delayed = match lane["delayed"].as_u64() {
            Some(delayed) if delayed > 0 => format!(" ({delayed} to be retried)"),
            _ => String::new(),
        };
        page.line(&format!(
            "            {:>2} {:>8} {:>7}  {}{delayed}",
            lane["position"].as_u64().unwrap_or(0),
            lane["depth"].as_u64().unwrap_or(0),
            age(lane["oldest_age_ms"].as_i64().unwrap_or(0)),
            text(&lane["lane"])
        ));
        blocked(page, &lane["blocked"], now);
    }
    let listed =
        lanes.len() + usize::try_from(queue["lanes_more"].as_u64().unwrap_or(0)).unwrap_or(0);
    if listed > ROWS_MAX {
        page.line(&format!("             and {} more", listed - ROWS_MAX));
    }
}

/// Why a load key is not served, where it is more than its turn.
fn blocked(page: &mut Page, blocked: &Value, now: i64) {
    let Some(reason) = blocked["reason"].as_str() else { return };
    let until = match millis(&blocked["until"]) {
        0 => String::new(),
        until => format!(", for {}", age(until - now)),
    };
    let sentence = format!("{reason}{until}: {}", text(&blocked["because"]));
    page.wrapped("                              ", &sentence);
}

/// One line where something is owed to receivers.
fn webhooks(page: &mut Page, webhooks: &Value) {
    let count = |name: &str| webhooks[name].as_u64().unwrap_or(0);
    let (pending, dead) = (count("pending"), count("dead"));
    if pending + dead > 0 {
        let delivered = count("delivered_since_start");
        page.line(&format!(
            "webhooks     {pending} to be sent, {dead} given up, {delivered} delivered since start"
        ));
    }
}

/// One line where failed jobs are kept.
fn dead_letters(page: &mut Page, stored: &Value) {
    let failed = stored["failed"].as_u64().unwrap_or(0);
    if failed > 0 {
        page.line(&format!("failed       {failed} kept: foreman jobs list --state failed"));
    }
}

/// One line on how near the loads of the last jobs are to the fewest possible.
pub(super) fn loads(page: &mut Page, loads: &Value) {
    let count = |name: &str| loads[name].as_u64().unwrap_or(0);
    match count("jobs") {
        0 => page.line("loads        no job has run yet"),
        jobs => page.line(&format!(
            "loads        {} for the last {jobs} jobs, at least {} needed",
            count("loads"),
            count("bound")
        )),
    }
}

pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Milliseconds since 1970 of an RFC 3339 text.
pub(super) fn millis(value: &Value) -> i64 {
    let at = value.as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
    let since = at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    i64::try_from(since.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(0)
}

/// A span in at most two units.
pub(super) fn age(ms: i64) -> String {
    let seconds = u64::try_from(ms / 1_000).unwrap_or(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_fits_in_eighty_columns() {
        let lane = "registry.example/some-very-long-namespace/some-very-long-model-name:70b-instruct-q4_K_M num_ctx=131072";
        let document = json!({
            "version": "0.1.0", "now": "2026-01-01T00:02:00.000Z", "started_at": "2026-01-01T00:00:00.000Z",
            "is_draining": false,
            "upstream": { "url": "http://127.0.0.1:11434", "state": "up", "since": "2026-01-01T00:00:01.000Z",
                          "version": "0.33.0", "models": 4 },
            "resident": [{ "model": "llama3:latest", "key": null, "since": "2026-01-01T00:01:00.000Z", "is_embedder": false }],
            "running": [{ "id": "01J00000000000000000000000", "state": "working", "lane": lane, "attempt": 1,
                          "running_for_ms": 4_000, "queued_for_ms": 61_000, "answer_bytes": 120 }],
            "queue": { "depth": 3, "lanes": [{ "lane": lane, "position": 1, "depth": 3, "delayed": 1, "oldest_age_ms": 90_000 }] },
            "disk": { "free_bytes": 5_242_880, "free_min_bytes": 268_435_456, "has_room": false },
            "loads": { "jobs": 5, "loads": 2, "bound": 2, "ratio": 1.0, "late": 0 },
            "since_start": { "loads": 2, "swaps": 1, "done": 5, "failed": 0, "cancelled": 1, "retries": 0 },
        });
        let page = render(&document, ([127, 0, 0, 1], 11435).into());
        assert!(page.lines().all(|line| line.chars().count() <= WIDTH), "{page}");
        assert!(page.contains("up 2m00s"), "{page}");
        assert!(page.contains("2 for the last 5 jobs, at least 2 needed"), "{page}");
        assert!(
            page.contains("disk         full: 5 MiB free, 256 MiB needed; new jobs are refused"),
            "{page}"
        );
        assert!(page.contains("2 loads (1 swaps), 5 done"), "{page}");
        let columns = [
            "             #  waiting  oldest  load key",
            "             1        3   1m30s  registry",
        ];
        assert!(columns.iter().all(|line| page.contains(line)), "{page}");
    }

    /// Two waited, nothing was resident and nothing ran, and the page did not say why.
    #[test]
    fn what_does_not_load_is_named_with_its_error() {
        let document = json!({
            "now": "2026-01-01T00:00:00.000Z",
            "broken": [{ "lane": "b:latest", "until": "2026-01-01T00:00:20.000Z", "failures": 3, "status": 500,
                         "error": "cudaMalloc failed: out of memory" }],
            "queue": { "depth": 2, "lanes": [{ "lane": "b:latest", "position": 1, "depth": 2, "delayed": 0, "oldest_age_ms": 0,
                       "blocked": { "reason": "broken", "because": "its load failed: out of memory",
                                    "until": "2026-01-01T00:00:20.000Z" } }] },
        });
        let page = render(&document, ([127, 0, 0, 1], 11435).into());
        assert!(page.lines().all(|line| line.chars().count() <= WIDTH), "{page}");
        for told in [
            "broken       b:latest\n",
            "3 in a row, and is tried again in 20s",
            "broken, for 20s: its load",
        ] {
            assert!(page.contains(told), "{told} is missing in\n{page}");
        }
    }

    #[test]
    fn who_sees_his_own_jobs_only_is_not_told_that_nothing_runs() {
        let document = json!({
            "key": { "name": "alice", "is_admin": false },
            "running": [], "queue": { "depth": 3, "lanes": [] },
        });
        let page = render(&document, ([127, 0, 0, 1], 11435).into());
        assert!(page.contains("running      nothing of yours\n"), "{page}");
        assert!(page.contains("3 waiting, those of other keys included\n"), "{page}");
        assert!(!page.contains("load key"), "{page}");
    }

    /// What went wrong stands at the end of the reason, behind the address: cut at the width, nobody saw it.
    #[test]
    fn the_reason_of_an_outage_is_told_to_its_end() {
        let reason = "cannot connect to https://gpu.example:11434: client error (Connect): no TLS: its certificate is \
                      issued by nobody who is trusted here (unknown issuer)";
        let document = json!({ "upstream": { "url": "https://gpu.example:11434", "state": "down", "reason": reason } });
        let page = render(&document, ([127, 0, 0, 1], 11435).into());
        assert!(page.contains("(unknown issuer)\n"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= WIDTH), "{page}");
    }
}
