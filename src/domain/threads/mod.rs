//! Threads of work: which request follows on the answer of which earlier one, and after what gap. Pure.
//!
//! A *thread* is one line of requests in which each follows on the answer of the one before: a conversation, an agent, a
//! script in a loop. A client may run several at once. The scheduler holds a model for a thread that will be back; here it
//! learns, at each arrival, which thread has come back. What the gaps amount to is counted elsewhere.
//!
//! Nothing is stored: after a restart all threads begin anew. Maps are ordered, so that the same history gives the same
//! answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use ulid::Ulid;

use super::job::JobId;
use super::model::LoadKey;
use super::whom::{ClientId, Whom};

#[cfg(test)]
mod tests;

/// Threads remembered; the least recently used go first.
///
/// More agents than this do not share one GPU, and beside them there is room for the threads of one request each that
/// scripts leave behind. A thread takes a few hundred bytes.
pub const THREADS_MAX: usize = 4_096;

/// Threads remembered of one client, so that a script with ten thousand requests at once forgets its own and nobody else's.
pub const THREADS_PER_CLIENT_MAX: usize = 256;

/// Chains remembered of one thread: its last few requests, so that an answer that is asked for again, or a question that is
/// put in other words, is still seen to go on from one of them.
const CHAINS_PER_THREAD_MAX: usize = 4;

/// Chains remembered, 16 bytes each.
pub const CHAINS_MAX: usize = THREADS_MAX * CHAINS_PER_THREAD_MAX;

/// Threads looked at that were served the very same messages: copies of one script. Any of them is as good as another.
const TWINS_MAX: usize = 16;

const _: () = assert!(CHAINS_MAX == 16_384 && THREADS_PER_CLIENT_MAX < THREADS_MAX);

/// One line of requests. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(u64);

impl fmt::Display for ThreadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// By what a request was seen to go on with a thread, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sign {
    /// By nothing: it begins a thread.
    New,
    /// Its client works in a closed loop: the job before has ended, no other is open, and so it was the last time.
    Client,
    /// The client's job before it on the same connection has ended, and no other is open there.
    Connection,
    /// Its messages begin with all the messages of a request that was served.
    Conversation,
}

impl Sign {
    /// All signs, the weakest first.
    pub const ALL: [Sign; 4] = [Sign::New, Sign::Client, Sign::Connection, Sign::Conversation];

    /// The stable name, in JSON, metrics, logs.
    pub fn name(self) -> &'static str {
        match self {
            Sign::New => "new",
            Sign::Client => "client",
            Sign::Connection => "connection",
            Sign::Conversation => "conversation",
        }
    }
}

/// What an arrival turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its thread.
    pub thread: ThreadId,
    /// By what it was told.
    pub sign: Sign,
    /// The job whose answer it follows on. `None` for a new thread, and where the thread's last job was cancelled: then
    /// there was no answer. No job is followed twice.
    pub follows: Option<Followed>,
}

/// The earlier job of a thread, as seen from the one that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The earlier job.
    pub job: JobId,
    /// From its end to this arrival, in milliseconds; 0 if the clock was put back.
    pub gap_ms: u64,
    /// What it ran on.
    pub key: LoadKey,
}

/// All threads foreman knows of. Owned by one task, told of every job: [`Threads::arrived`] once it is admitted, and then
/// [`Threads::ended`] or [`Threads::cancelled`].
#[derive(Debug, Default)]
pub struct Threads {
    threads: BTreeMap<ThreadId, Thread>,
    /// Jobs that have not ended; at most one for each thread.
    jobs: BTreeMap<JobId, OpenJob>,
    jobs_of_client: BTreeSet<(ClientId, JobId)>,
    jobs_of_connection: BTreeSet<(u64, JobId)>,
    /// Full chains of served requests, each with the thread it was served in.
    chains: BTreeSet<(u64, ThreadId)>,
    /// Clients with a thread.
    clients: BTreeMap<ClientId, Client>,
    /// The thread of the latest arrival on each connection, unless that thread has gone on elsewhere.
    connections: BTreeMap<u64, ThreadId>,
    uses: BTreeSet<(u64, ThreadId)>,
    uses_by_client: BTreeSet<(ClientId, u64, ThreadId)>,
    threads_begun: u64,
    uses_counted: u64,
}

#[derive(Debug)]
struct Thread {
    /// Who sent its latest job.
    whom: Whom,
    latest: Latest,
    /// Full chains of its served requests, the latest last.
    chains: VecDeque<u64>,
    /// When it was last used, as a number that only grows.
    used: u64,
}

/// How the latest job of a thread stands.
#[derive(Debug)]
enum Latest {
    Open(JobId),
    Ended {
        job: JobId,
        at_ms: i64,
        key: LoadKey,
    },
    /// Cancelled, or of no load key: there is nothing to follow on.
    Gone,
}

#[derive(Debug)]
struct OpenJob {
    whom: Whom,
    thread: ThreadId,
    /// The last hash of its chain.
    full_chain: Option<u64>,
}

#[derive(Debug)]
struct Client {
    /// Whether no job of it was open when its latest one arrived.
    was_idle: bool,
    /// The thread of that one.
    latest: ThreadId,
}

impl Threads {
    /// Takes in a job and says what it goes on with.
    ///
    /// `chain` holds a hash for each beginning of its messages that can be told from others', the last one for all of them
    /// (`ollama::wire::chain`); empty where a request has no messages. A job that is told of twice leaves its first thread.
    pub fn arrived(&mut self, now_ms: i64, job: JobId, whom: &Whom, chain: &[u64]) -> Arrival {
        self.cancelled(job);
        let (full_chain, beginnings) = match chain.split_last() {
            Some((full, beginnings)) => (Some(*full), beginnings),
            None => (None, chain),
        };
        let found = self
            .by_conversation(whom, beginnings)
            .map(|thread| (thread, Sign::Conversation))
            .or_else(|| self.by_connection(whom).map(|thread| (thread, Sign::Connection)))
            .or_else(|| self.by_client(whom).map(|thread| (thread, Sign::Client)));
        let (thread, sign) = found.unwrap_or_else(|| (self.next_thread(), Sign::New));
        let latest = self.enter(thread, OpenJob { whom: *whom, thread, full_chain }, job);
        let follows = match latest {
            Some(Latest::Ended { job, at_ms, key }) => {
                let gap_ms = u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0);
                Some(Followed { job, gap_ms, key })
            }
            Some(Latest::Open(_) | Latest::Gone) | None => None,
        };
        Arrival { thread, sign, follows }
    }

    /// Notes that a job was answered, well or badly, on `key`. Unknown jobs, such as those from before a restart, are passed
    /// over.
    ///
    /// To be called as soon as the answer is whole, before it is committed: who reads a stream may be back before that.
    pub fn ended(&mut self, job: JobId, now_ms: i64, key: LoadKey) {
        let Some(open) = self.close(job, Latest::Ended { job, at_ms: now_ms, key }) else { return };
        if let Some(chain) = open.full_chain {
            self.remember(open.thread, chain);
        }
        self.touch(open.thread);
    }

    /// Notes that a job was cancelled, or ended without a load key (an opaque one): nothing can follow on its answer, but
    /// its thread may still go on. Unknown jobs are passed over.
    pub fn cancelled(&mut self, job: JobId) {
        self.close(job, Latest::Gone);
    }

    /// The idle thread that was served the longest beginning of these messages. Of several that were served the same, the
    /// one on the same connection, else of the same client, else the last used.
    fn by_conversation(&self, whom: &Whom, beginnings: &[u64]) -> Option<ThreadId> {
        beginnings.iter().rev().find_map(|chain| {
            let (first, last) = (ThreadId(0), ThreadId(u64::MAX));
            let twins = self.chains.range((*chain, first)..=(*chain, last)).rev().take(TWINS_MAX);
            twins
                .filter_map(|(_, id)| Some((*id, self.idle(*id)?)))
                .max_by_key(|(_, thread)| {
                    let is_here = thread.whom.connection == whom.connection;
                    (is_here, thread.whom.client == whom.client, thread.used)
                })
                .map(|(id, _)| id)
        })
    }

    /// A proxy before foreman carries several clients over one connection, so the client must be the same too.
    fn by_connection(&self, whom: &Whom) -> Option<ThreadId> {
        let id = *self.connections.get(&whom.connection)?;
        let is_same = self.idle(id)?.whom.client == whom.client;
        (is_same && !is_open(&self.jobs_of_connection, whom.connection)).then_some(id)
    }

    /// A client that has just had several jobs open may have several lines of work: it must be seen idle twice.
    fn by_client(&self, whom: &Whom) -> Option<ThreadId> {
        let client = self.clients.get(&whom.client)?;
        let thread = self.idle(client.latest)?;
        let is_loop = client.was_idle && !is_open(&self.jobs_of_client, whom.client);
        (is_loop && thread.whom.client == whom.client).then_some(client.latest)
    }

    /// A known thread whose latest job is over.
    fn idle(&self, id: ThreadId) -> Option<&Thread> {
        let thread = self.threads.get(&id)?;
        match thread.latest {
            Latest::Open(_) => None,
            Latest::Ended { .. } | Latest::Gone => Some(thread),
        }
    }

    fn next_thread(&mut self) -> ThreadId {
        self.threads_begun += 1;
        ThreadId(self.threads_begun)
    }

    /// Makes `job` the latest of an idle or new thread; returns what was the latest before.
    fn enter(&mut self, id: ThreadId, open: OpenJob, job: JobId) -> Option<Latest> {
        let whom = open.whom;
        let was_idle = !is_open(&self.jobs_of_client, whom.client);
        let before = self.take_out(id);
        let (latest, chains) = match before {
            Some(thread) => (Some(thread.latest), thread.chains),
            None => (None, VecDeque::new()),
        };
        let used = self.next_use();
        self.threads.insert(id, Thread { whom, latest: Latest::Open(job), chains, used });
        self.uses.insert((used, id));
        self.uses_by_client.insert((whom.client, used, id));
        self.connections.insert(whom.connection, id);
        self.clients.insert(whom.client, Client { was_idle, latest: id });
        self.jobs.insert(job, open);
        self.jobs_of_client.insert((whom.client, job));
        self.jobs_of_connection.insert((whom.connection, job));
        self.trim(whom.client);
        latest
    }

    /// Takes a job off the list of open ones and leaves its thread as told.
    fn close(&mut self, job: JobId, latest: Latest) -> Option<OpenJob> {
        let open = self.jobs.remove(&job)?;
        self.jobs_of_client.remove(&(open.whom.client, job));
        self.jobs_of_connection.remove(&(open.whom.connection, job));
        if let Some(thread) = self.threads.get_mut(&open.thread) {
            thread.latest = latest;
        }
        Some(open)
    }

    fn remember(&mut self, id: ThreadId, chain: u64) {
        let Some(thread) = self.threads.get_mut(&id) else { return };
        thread.chains.retain(|known| *known != chain);
        thread.chains.push_back(chain);
        self.chains.insert((chain, id));
        if thread.chains.len() > CHAINS_PER_THREAD_MAX
            && let Some(oldest) = thread.chains.pop_front()
        {
            self.chains.remove(&(oldest, id));
        }
    }

    fn touch(&mut self, id: ThreadId) {
        let used = self.next_use();
        let Some(thread) = self.threads.get_mut(&id) else { return };
        let client = thread.whom.client;
        self.uses.remove(&(thread.used, id));
        self.uses_by_client.remove(&(client, thread.used, id));
        thread.used = used;
        self.uses.insert((used, id));
        self.uses_by_client.insert((client, used, id));
    }

    fn next_use(&mut self) -> u64 {
        self.uses_counted += 1;
        self.uses_counted
    }

    /// Forgets what is over the limits. The thread just used is the last to go, so it stays.
    fn trim(&mut self, client: ClientId) {
        let own = (client, 0, ThreadId(0))..=(client, u64::MAX, ThreadId(u64::MAX));
        if self.uses_by_client.range(own.clone()).count() > THREADS_PER_CLIENT_MAX
            && let Some((_, _, oldest)) = self.uses_by_client.range(own).next().copied()
        {
            self.forget(oldest);
        }
        if self.threads.len() > THREADS_MAX
            && let Some((_, oldest)) = self.uses.first().copied()
        {
            self.forget(oldest);
        }
    }

    /// Forgets a thread, and with it its open job: that no longer keeps its client from looking idle. A client with so many
    /// open jobs may then be taken for a loop once, by the weakest sign.
    fn forget(&mut self, id: ThreadId) {
        let Some(thread) = self.take_out(id) else { return };
        for chain in thread.chains {
            self.chains.remove(&(chain, id));
        }
        if let Latest::Open(job) = thread.latest {
            self.close(job, Latest::Gone);
        }
    }

    /// Takes a thread out of everything but the chains and the open jobs.
    fn take_out(&mut self, id: ThreadId) -> Option<Thread> {
        let thread = self.threads.remove(&id)?;
        let Whom { client, connection } = thread.whom;
        self.uses.remove(&(thread.used, id));
        self.uses_by_client.remove(&(client, thread.used, id));
        if self.connections.get(&connection) == Some(&id) {
            self.connections.remove(&connection);
        }
        let (first, last) = ((client, 0, ThreadId(0)), (client, u64::MAX, ThreadId(u64::MAX)));
        if self.uses_by_client.range(first..=last).next().is_none() {
            self.clients.remove(&client);
        }
        Some(thread)
    }
}

/// Whether `owner` has an open job.
fn is_open<T: Ord + Copy>(jobs: &BTreeSet<(T, JobId)>, owner: T) -> bool {
    let first = (owner, JobId(Ulid::nil()));
    jobs.range(first..).next().is_some_and(|(found, _)| *found == owner)
}
