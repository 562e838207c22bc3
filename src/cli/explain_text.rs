//! Why the scheduler did what it did last, for people: readable in 80 columns, without colour.

use serde_json::Value;

use super::status_text::{Page, age, items, loads, millis, text};

/// Decisions shown; the document has a few more.
const DECISIONS_MAX: usize = 20;

/// Columns before the sentence of a decision.
const INDENT: &str = "                    ";

/// The whole page.
pub(super) fn render(document: &Value) -> String {
    let mut page = Page::default();
    loads(&mut page, &document["loads"]);
    let found = &document["loads"];
    if let Some(ratio) = found["ratio"].as_f64() {
        let late = found["late"].as_u64().unwrap_or(0);
        page.line(&format!(
            "             {ratio:.2} times the fewest; {late} jobs began later than they should"
        ));
    }
    let scheduler = &document["scheduler"];
    let count = |name: &str| scheduler[name].as_u64().unwrap_or(0);
    page.line(&format!(
        "holds        {} ended by a job that came, {} in vain",
        count("hold_hits"),
        count("hold_misses")
    ));
    if let Some(model) = scheduler["holding"].as_str() {
        page.line(&format!("holding      {model}"));
    }
    let decisions = items(&scheduler["decisions"]);
    if decisions.is_empty() {
        page.line("decisions    none yet");
        return page.into_text();
    }
    page.line("decisions    the last one first:");
    let now = millis(&document["now"]);
    for decision in decisions.iter().take(DECISIONS_MAX) {
        let ago = age(now - millis(&decision["at"]));
        page.line(&format!(
            "{ago:>8} ago  {:<6} {}",
            text(&decision["decision"]),
            text(&decision["lane"])
        ));
        let because = format!("{}: {}", text(&decision["reason"]), text(&decision["because"]));
        page.wrapped(INDENT, &because);
    }
    page.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decisions_come_with_their_reasons_in_eighty_columns() {
        let lane = "registry.example/some-very-long-namespace/some-very-long-model-name:70b num_ctx=131072";
        let because = "its model is resident, perhaps with other options, so its load is repeated";
        let document = json!({
            "now": "2026-01-01T00:02:00.000Z",
            "loads": { "jobs": 100, "loads": 12, "bound": 9, "ratio": 1.33, "late": 2 },
            "scheduler": {
                "holding": "llama3:latest", "hold_hits": 4, "hold_misses": 1,
                "decisions": [
                    { "at": "2026-01-01T00:01:58.000Z", "decision": "load", "lane": lane, "reason": "confirm", "because": because },
                    { "at": "2026-01-01T00:00:30.000Z", "decision": "swap", "lane": "b:latest", "reason": "dry",
                      "because": "nothing was left for the resident model" },
                ],
            },
        });
        let page = render(&document);
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
        for told in [
            "loads        12 for the last 100 jobs, at least 9 needed",
            "1.33 times the fewest; 2 jobs",
            "4 ended by a job that came, 1 in vain",
            "holding      llama3:latest",
            "   1m30s ago  swap   b:latest",
            "dry: nothing was left",
            "is repeated",
        ] {
            assert!(page.contains(told), "{told} is missing in\n{page}");
        }
    }

    #[test]
    fn a_daemon_that_has_done_nothing_yet_has_a_page_too() {
        let page =
            render(&json!({ "loads": { "jobs": 0, "loads": 0, "bound": 0, "ratio": null } }));
        assert!(page.contains("loads        no job has run yet"), "{page}");
        assert!(page.contains("decisions    none yet"), "{page}");
    }
}
