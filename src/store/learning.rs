//! What foreman learns by watching and would be slow to learn again after a restart: how long loads take, after which
//! gaps clients return, which models fit in memory side by side. Hints only: nothing here decides whether a job is
//! served, so what cannot be read is begun anew, and every table has a bound. Called by `worker`.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::error::StoreError;
use super::{Durability, Store};

/// Load times kept of a key: their median follows a changed disk after three loads and shrugs off two odd ones.
const LOAD_TIMES_MAX: usize = 5;

/// Keys of which load times are kept, the last measured first. Far more than one machine's models with their options;
/// against clients that send a new `num_ctx` each time.
const LOAD_KEYS_MAX: u32 = 1_000;

/// Gaps kept of a group: enough for a distribution, few enough to follow a client that changes its habits.
const GAPS_MAX: usize = 32;

/// Groups of clients of which gaps are kept, the last used first: about 2 MB. Addresses and programs come and go.
const GAP_GROUPS_MAX: u32 = 10_000;

/// A group not seen for this long (30 days) is forgotten: people come back after a holiday, programs change.
const GAP_UNUSED_MS_MAX: i64 = 30 * 24 * 60 * 60 * 1_000;

/// Sets of models of which it is kept whether they fit: the pairs of 45 models.
const FITS_MAX: u32 = 1_000;

/// What was learned, by name.
type ByName = Vec<(String, Vec<Option<i64>>)>;

/// How long it is believed that models do not fit: a week.
const MISFIT_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// All that was learned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    /// The last load times of each key in milliseconds, oldest first; the key measured longest ago first.
    pub load_times: Vec<(String, Vec<i64>)>,
    /// The last gaps of each group of clients in milliseconds, oldest first, `None` where the client did not return; the
    /// group used longest ago first.
    pub gaps: Vec<(String, Vec<Option<i64>>)>,
    /// Whether these models fit in memory side by side; the oldest observation first.
    pub fits: Vec<(String, bool)>,
}

impl Store {
    /// Keeps how long making `key` resident took. Only the last few of a key are kept. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn keep_load_time(&self, key: String, ms: i64, at_ms: i64) -> Result<(), StoreError> {
        self.write(Durability::Process, move |tx| keep(tx, &LOAD_TIMES, &key, Some(ms), at_ms))
            .await
    }

    /// Keeps after which gap a client of `group` returned; `None`: it did not. Only the last few of a group are kept.
    /// Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn keep_gap(
        &self,
        group: String,
        gap_ms: Option<i64>,
        at_ms: i64,
    ) -> Result<(), StoreError> {
        self.write(Durability::Process, move |tx| keep(tx, &GAPS, &group, gap_ms, at_ms)).await
    }

    /// Keeps whether these models fit in memory side by side; the last word counts. `models` names the set, and is the
    /// same text whenever the set is the same. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn keep_fit(&self, models: String, fits: bool, at_ms: i64) -> Result<(), StoreError> {
        self.write(Durability::Process, move |tx| keep_fit(tx, &models, fits, at_ms)).await
    }

    /// Forgets which models fit: for a machine or an Ollama that has changed. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn forget_fits(&self) -> Result<(), StoreError> {
        self.write(Durability::Process, |tx| {
            tx.execute("DELETE FROM fit", [])?;
            Ok(())
        })
        .await
    }

    /// All that was learned. That models do not fit is believed for a week: memory is added, and an upstream that had little
    /// left once need not have for ever.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn learned(&self, now_ms: i64) -> Result<Learned, StoreError> {
        self.read(move |tx| learned(tx, now_ms)).await
    }
}

/// A table that keeps the last few values under each of many names.
struct Series {
    table: &'static str,
    values_max: usize,
    names_max: u32,
}

const LOAD_TIMES: Series =
    Series { table: "load_time", values_max: LOAD_TIMES_MAX, names_max: LOAD_KEYS_MAX };

const GAPS: Series = Series { table: "gap", values_max: GAPS_MAX, names_max: GAP_GROUPS_MAX };

fn keep(
    tx: &Connection,
    series: &Series,
    name: &str,
    value: Option<i64>,
    at_ms: i64,
) -> Result<(), StoreError> {
    let table = series.table;
    let found: Option<String> = tx
        .prepare_cached(&format!("SELECT recent FROM {table} WHERE name = ?1"))?
        .query_row([name], |row| row.get(0))
        .optional()?;
    let mut recent = found.as_deref().map(values_from_text).unwrap_or_default();
    recent.push(value);
    let surplus = recent.len().saturating_sub(series.values_max);
    recent.drain(..surplus);
    tx.prepare_cached(&format!(
        "INSERT INTO {table}(name, recent, at_ms) VALUES (?1, ?2, ?3)
         ON CONFLICT(name) DO UPDATE SET recent = excluded.recent, at_ms = excluded.at_ms"
    ))?
    .execute(params![name, values_to_text(&recent), at_ms])?;
    if found.is_none() {
        drop_surplus(tx, table, ("name", name), series.names_max)?;
    }
    Ok(())
}

fn keep_fit(tx: &Connection, models: &str, fits: bool, at_ms: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO fit(models, fits, at_ms) VALUES (?1, ?2, ?3)
               ON CONFLICT(models) DO UPDATE SET fits = excluded.fits, at_ms = excluded.at_ms";
    tx.prepare_cached(sql)?.execute(params![models, fits, at_ms])?;
    drop_surplus(tx, "fit", ("models", models), FITS_MAX)
}

/// Drops the rows used longest ago beyond `rows_max`, but never the one just written: a clock that was set back would make
/// it the oldest.
fn drop_surplus(
    tx: &Connection,
    table: &str,
    (column, written): (&str, &str),
    rows_max: u32,
) -> Result<(), StoreError> {
    let sql = format!(
        "DELETE FROM {table} WHERE {column} IN (
             SELECT {column} FROM {table} WHERE {column} <> ?1 ORDER BY at_ms
             LIMIT MAX(0, (SELECT COUNT(*) FROM {table}) - ?2))"
    );
    tx.prepare_cached(&sql)?.execute(params![written, rows_max])?;
    Ok(())
}

/// Drops the groups of clients not seen for long.
pub(super) fn forget_unused(tx: &Connection, now_ms: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM gap WHERE at_ms < ?1")?
        .execute([now_ms.saturating_sub(GAP_UNUSED_MS_MAX)])?;
    Ok(())
}

fn learned(tx: &Transaction<'_>, now_ms: i64) -> Result<Learned, StoreError> {
    let load_times = series(tx, &LOAD_TIMES)?
        .into_iter()
        .map(|(key, times)| (key, times.into_iter().flatten().collect()))
        .collect();
    let fits = tx
        .prepare_cached(
            "SELECT models, fits FROM fit WHERE fits = 1 OR at_ms > ?1 ORDER BY at_ms, models",
        )?
        .query_map([now_ms.saturating_sub(MISFIT_MS)], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    Ok(Learned { load_times, gaps: series(tx, &GAPS)?, fits })
}

fn series(tx: &Transaction<'_>, series: &Series) -> Result<ByName, StoreError> {
    let sql = format!("SELECT name, recent FROM {} ORDER BY at_ms, name", series.table);
    let mut statement = tx.prepare_cached(&sql)?;
    let found = statement.query_map([], |row| {
        let recent: String = row.get(1)?;
        Ok((row.get(0)?, values_from_text(&recent)))
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

fn values_to_text(values: &[Option<i64>]) -> String {
    serde_json::Value::from(values.to_vec()).to_string()
}

/// The reverse of [`values_to_text`]; nothing for a text that is none of its.
fn values_from_text(text: &str) -> Vec<Option<i64>> {
    serde_json::from_str(text).unwrap_or_default()
}
