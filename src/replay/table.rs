//! Reports as tables for people: a line a replay, or a row a workload with all choosers side by side.

use super::report::{Report, mean};
use super::trace::{Trace, TraceFault};
use super::{Chooser, Setup, replay};

/// A replay with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// What was replayed, as the table calls it.
    pub trace: String,
    /// Who chose.
    pub chooser: Chooser,
    /// What became of it.
    pub report: Report,
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Columns of spaces, at most 120 of them.
    Plain,
    /// A table in Markdown.
    Markdown,
}

/// A workload with the reports of its traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// The reports, by [`Chooser::ALL`].
    pub reports: [Vec<Report>; 3],
}

/// The names of files are cut to this, from their beginnings.
const NAME_COLUMNS: usize = 18;

/// The workload of a file `NAME.SEED.jsonl`, or `NAME.jsonl`; `None` for other files.
pub fn workload_of(file: &str) -> Option<&str> {
    let stem = file.strip_suffix(".jsonl")?;
    match stem.rsplit_once('.') {
        Some((name, seed))
            if !seed.is_empty() && seed.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            Some(name)
        }
        _ => Some(stem),
    }
}

/// Replays traces with each chooser. The traces of a workload must stand together.
///
/// # Errors
/// A key that is none, with the name of its workload.
pub fn suite(
    traces: &[(String, Trace)],
    setup: &Setup,
) -> Result<Vec<Workload>, (String, TraceFault)> {
    let mut workloads: Vec<Workload> = Vec::new();
    for (name, trace) in traces {
        if workloads.last().is_none_or(|last| last.name != *name) {
            workloads.push(Workload { name: name.clone(), reports: Default::default() });
        }
        for (place, chooser) in Chooser::ALL.into_iter().enumerate() {
            let setup = Setup { chooser, ..setup.clone() };
            let report = replay(trace, &setup).map_err(|fault| (name.clone(), fault))?;
            if let Some(last) = workloads.last_mut() {
                last.reports[place].push(report);
            }
        }
    }
    Ok(workloads)
}

/// A line a replay, and the mean of each chooser's where it has several.
pub fn lines(replays: &[Replayed]) -> String {
    let heads = ["trace", "policy", "jobs", "loads", "per 100", "bound", "ratio", "makespan"]
        .into_iter()
        .chain(["latency", "p95", "longest", "late", "loading", "holds", "rotated"]);
    let mut rows = vec![heads.map(str::to_owned).collect::<Vec<_>>()];
    for replayed in replays {
        let name = cut(&replayed.trace);
        rows.push(line(&name, replayed.chooser, std::slice::from_ref(&replayed.report)));
    }
    for chooser in Chooser::ALL {
        let own = replays.iter().filter(|replayed| replayed.chooser == chooser);
        let own: Vec<Report> = own.map(|replayed| replayed.report.clone()).collect();
        if own.len() > 1 {
            rows.push(line("mean", chooser, &own));
        }
    }
    columns(&rows, 2, " ")
}

fn line(name: &str, chooser: Chooser, reports: &[Report]) -> Vec<String> {
    let of = |figure: fn(&Report) -> f64| mean(reports, figure);
    let count = |figure: fn(&Report) -> f64| match reports.len() {
        1 => format!("{:.0}", of(figure)),
        _ => format!("{:.1}", of(figure)),
    };
    let (hits, misses) =
        (count(|report| report.hold_hits as f64), count(|report| report.hold_misses as f64));
    vec![
        name.to_owned(),
        chooser.name().to_owned(),
        count(|report| report.jobs as f64),
        count(|report| report.loads as f64),
        format!("{:.1}", of(Report::loads_per_100)),
        count(|report| report.bound as f64),
        format!("{:.2}", of(Report::loads_per_bound)),
        format!("{:.0}", of(|report| report.makespan_s)),
        seconds(of(|report| report.mean_latency_s)),
        seconds(of(|report| report.p95_wait_s)),
        seconds(of(|report| report.longest_wait_s)),
        count(|report| report.late as f64),
        format!("{:.1}%", 100.0 * of(Report::loading_share)),
        format!("{hits}/{misses}"),
        count(|report| report.rotations as f64),
    ]
}

/// Columns as wide as their widest cell, with a gap between; the first `left` to the left, the others, numbers, to the
/// right.
fn columns(rows: &[Vec<String>], left: usize, gap: &str) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or(0);
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join(gap).trim_end());
        text.push('\n');
    }
    text
}

impl Workload {
    /// What each chooser came to, averaged over the traces, and for the last one the bound and the late jobs.
    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.name.clone()];
        for reports in &self.reports {
            let of = |figure: fn(&Report) -> f64| mean(reports, figure);
            cells.push(format!(
                "{:>5.1} · {:>4.0} · {:>4} · {:>4.0}",
                of(Report::loads_per_100),
                of(|report| report.makespan_s),
                seconds(of(|report| report.mean_latency_s)),
                of(|report| report.longest_wait_s)
            ));
        }
        let [_, _, foreman] = &self.reports;
        cells.push(format!("{:>5.1}", mean(foreman, Report::bound_per_100)));
        cells.push(format!("{:>4.1}", mean(foreman, |report| report.late as f64)));
        cells
    }

    /// The table of some workloads: for each chooser loads per 100 jobs, makespan, mean latency and longest wait, in
    /// seconds; then, for foreman, the fewest loads possible per 100 jobs and the jobs that were late. All are means over
    /// the traces of the workload.
    pub fn table(workloads: &[Workload], form: Form) -> String {
        let heads = ["workload"].into_iter().chain(Chooser::ALL.map(Chooser::name));
        let heads: Vec<String> = heads.chain(["bound", "late"]).map(str::to_owned).collect();
        let rows: Vec<Vec<String>> = workloads.iter().map(Workload::cells).collect();
        match form {
            Form::Plain => {
                let mut all = vec![heads];
                all.extend(rows);
                let names = all.iter_mut().filter_map(|row| row.first_mut());
                names.for_each(|name| *name = cut(name));
                columns(&all, all[0].len(), "  ")
            }
            Form::Markdown => {
                let row = |cells: &[String]| {
                    let cells: Vec<String> = cells
                        .iter()
                        .map(|cell| cell.split_whitespace().collect::<Vec<_>>().join(" "))
                        .collect();
                    format!("| {} |\n", cells.join(" | "))
                };
                let rule = format!("|{}\n", "---|".repeat(heads.len()));
                let rows: String = rows.iter().map(|cells| row(cells)).collect();
                row(&heads) + &rule + &rows
            }
        }
    }
}

/// Three digits, as far as there are.
fn seconds(seconds: f64) -> String {
    if seconds < 100.0 { format!("{seconds:.1}") } else { format!("{seconds:.0}") }
}

/// The end of a name that is too long: of paths it tells most.
fn cut(name: &str) -> String {
    let count = name.chars().count();
    if count <= NAME_COLUMNS {
        return name.to_owned();
    }
    let end: String = name.chars().skip(count - NAME_COLUMNS + 1).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred jobs of three keys in turns: FIFO loads for each, the others do not.
    fn day() -> Trace {
        let lines = (0..100).map(|n| {
            let key = ["A", "B", "C"][n % 3];
            format!("{{\"arrival_s\": {n}, \"key\": {key:?}, \"service_s\": 3}}\n")
        });
        Trace::parse(&lines.collect::<String>()).unwrap()
    }

    #[test]
    fn files_belong_to_workloads() {
        let all = ["a.0.jsonl", "poisson-0.5.12.jsonl", "mine.jsonl", "a.b.jsonl", "README.md"];
        let found = all.map(workload_of);
        assert_eq!(found, [Some("a"), Some("poisson-0.5"), Some("mine"), Some("a.b"), None]);
    }

    #[test]
    fn the_suite_has_a_row_for_each_workload_and_fits_in_120_columns() {
        let named = ["the-busiest-day-of-the-whole-year", "b", "b"];
        let traces = named.map(|name| (name.to_owned(), day()));
        let workloads = suite(&traces, &Setup::default()).unwrap();
        assert_eq!(workloads.len(), 2);
        assert_eq!(workloads[1].reports.each_ref().map(Vec::len), [2, 2, 2]);
        let table = Workload::table(&workloads, Form::Plain);
        assert_eq!(table.lines().count(), 3);
        assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
        assert!(table.contains("…"), "{table}");
        assert!(table.contains("100.0 · 1300"), "{table}");
        let markdown = Workload::table(&workloads, Form::Markdown);
        assert!(
            markdown.starts_with("| workload | fifo | drain | foreman | bound | late |\n|---|")
        );
        assert_eq!(markdown.lines().count(), 4);
        assert!(markdown.lines().all(|line| line.matches('|').count() == 7), "{markdown}");
    }

    #[test]
    fn several_replays_have_a_mean_and_one_has_none() {
        let one = |trace: &str, chooser| {
            let setup = Setup { chooser, ..Setup::default() };
            Replayed { trace: trace.to_owned(), chooser, report: replay(&day(), &setup).unwrap() }
        };
        let page = lines(&[one("x.jsonl", Chooser::Fifo)]);
        assert_eq!(page.lines().count(), 2, "{page}");
        let long = "somewhere/far/away/in/a/folder/with/a/long/name/x.jsonl";
        let page = lines(&[
            one(long, Chooser::Fifo),
            one("y.jsonl", Chooser::Fifo),
            one(long, Chooser::Foreman),
        ]);
        assert_eq!(page.lines().filter(|line| line.starts_with("mean ")).count(), 1, "{page}");
        assert!(page.contains("…long/name/x.jsonl"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 120), "{page}");
    }

    #[test]
    fn a_report_as_json_has_whole_counts() {
        let report = replay(&day(), &Setup::default()).unwrap();
        let json = super::super::as_json(std::slice::from_ref(&report));
        assert_eq!(json["jobs"], 100);
        assert!(json["loads"].is_u64() && json["mean_latency_s"].is_number());
        let two = super::super::as_json(&[report.clone(), report]);
        assert_eq!(two, json);
    }
}
