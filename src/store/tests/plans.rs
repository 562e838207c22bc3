//! How SQLite goes about the statements that run at each decision: by index, whatever the depth.

use super::*;

/// What is asked at each decision, and what is shown, must not read the whole queue or the whole history: each step of
/// these plans seeks in an index or walks one that it leaves at once, and nothing is sorted.
#[tokio::test]
async fn the_queue_is_read_by_index_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let delays_over = lanes::DELAYS_OVER.map(lanes::delays_over);
    let delayed = overview::open_jobs_sql(overview::DELAYED, "not_before_ms, seq");
    let live = overview::open_jobs_sql(overview::LIVE, "seq");
    let by_client = "SEARCH job USING COVERING INDEX job_ready (lane=? AND class=? AND client=?";
    let (after, older) = (format!("{by_client} AND seq>?)"), format!("{by_client} AND seq<?)"));
    let expected: [(&str, &[&str]); 15] = [
        (lanes::OF_LANE, &[]),
        (board::BY_HEAD, &[]),
        (board::BY_JOBS, &[]),
        (board::OF_MODEL, &[]),
        (turns::NEXT, &[&format!("{by_client})")]),
        (turns::AFTER, &[&after]),
        (turns::OLDER, &[&older]),
        (lanes::WAITING, &[]),
        (&delays_over[0], &["SEARCH job USING COVERING INDEX job_delayed (not_before_ms<?)"]),
        (&delays_over[1], &["SEARCH job USING INDEX job_put_off (not_before_ms>?)"]),
        (lanes::NEXT_READY, &["SCAN job USING COVERING INDEX job_delayed"]),
        (overview::OLDEST_DELAYED, &["SEARCH job USING INDEX job_put_off_in_lane (lane=?)"]),
        (&delayed, &["SCAN job USING INDEX job_delayed"]),
        (trace::RAN_LAST, &["SCAN job USING INDEX job_ran"]),
        // At an opening, of the index alone.
        (
            recovery::CLAMP_READY,
            &[
                "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)",
                "SCAN job USING COVERING INDEX job_oldest",
            ],
        ),
    ];
    for (sql, steps) in expected {
        reads(&store, sql, steps).await;
    }
    let head = "SEARCH head USING COVERING INDEX head_next (class=?)";
    assert_eq!(plan(&store, board::BY_HEAD).await, [head]);
    let of_model = "SEARCH waiting USING PRIMARY KEY (lane>? AND lane<?)";
    assert_eq!(plan(&store, board::OF_MODEL).await, [of_model]);
    let turn = "SEARCH turn USING COVERING INDEX turn_next (lane=? AND class=?)";
    assert_eq!(plan(&store, turns::CLIENTS).await, [turn]);
    // Few are in flight: those may be sorted.
    assert_eq!(plan(&store, &live).await[0], "SEARCH job USING INDEX job_live (state=?)");
}

/// What is asked at each admission, at each deadline and at each sweep, and the dead letters. (For those all jobs were read.)
#[tokio::test]
async fn what_is_looked_for_is_found_by_index_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let old = retention::OLD.map(retention::old_jobs);
    let failed = rows::in_states(&[crate::domain::job::State::Failed]);
    let dead = format!("{} WHERE TRUE AND {failed} ORDER BY job.seq DESC LIMIT ?1", view::SELECT);
    let expected: [(&str, &[&str]); 7] = [
        (
            deadlines::NEXT_DEADLINE,
            &["SEARCH job USING COVERING INDEX job_deadline (deadline_ms>?)"],
        ),
        (
            deadlines::EXPIRED,
            &["SEARCH job USING INDEX job_deadline (deadline_ms>? AND deadline_ms<?)"],
        ),
        (
            admission::TAKE_LOST,
            &[
                "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH job USING INDEX job_lost (attach_key=?)",
            ],
        ),
        (admission::LIKE, &["SEARCH job USING INDEX job_like (likeness=?)"]),
        (&old[0], &["SEARCH job USING INDEX job_over (finished_at_ms<?)"]),
        (&old[1], &["SEARCH job USING COVERING INDEX job_dead (finished_at_ms<?)"]),
        (&dead, &["SEARCH job USING INDEX job_unanswered (state=?)"]),
    ];
    for (sql, steps) in expected {
        reads(&store, sql, steps).await;
    }
}

/// Checks how a statement goes about the jobs, and that it sorts nothing.
async fn reads(store: &Store, sql: &str, steps: &[&str]) {
    let plan = plan(store, sql).await;
    let touching: Vec<&String> = plan.iter().filter(|step| step.contains(" job ")).collect();
    let is_sorted = plan.iter().any(|step| step.contains("TEMP B-TREE"));
    assert!(touching == steps && !is_sorted, "{sql}: {plan:#?}");
}

pub(super) async fn plan(store: &Store, sql: &str) -> Vec<String> {
    let sql = format!("EXPLAIN QUERY PLAN {sql}");
    store
        .read(move |tx| {
            let mut statement = tx.prepare(&sql)?;
            let rows = statement.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>();
            Ok(rows?)
        })
        .await
        .unwrap()
}
