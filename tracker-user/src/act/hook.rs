//! Hooks and webhooks: a program that is run, or a server that is asked, for each event of a service, one after the other, with a time
//! limit and repetitions.
//!
//! A hook never delays a change of the kernel: programs run beside the loop that makes those. What is not done when this process is
//! killed is done again by the next one, so a hook sees each event at least once; `seq` tells repetitions.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::CString,
    io,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Gid, Pid, Uid, User, getgrouplist},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    task::{Id, JoinSet},
    time::timeout,
};

use super::{
    choice::Selector,
    feed::{EventLine, Happened},
    store::Cursor,
    webhook::{Webhook, WebhookError},
};
use crate::config::{Action, ActionKind};

/// So many events of one service wait for a hook; of more, the oldest are left out.
const WAITING_MAX: usize = 64;
/// So many runs of one hook go on at the same time, each for another service.
const RUNNING_MAX: usize = 16;
/// The first pause before a run that failed is repeated; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a program has to end by SIGTERM, before SIGKILL.
const TERM: Duration = Duration::from_secs(1);
/// How long output is read that comes after the end of the program, from processes that it left.
const REST: Duration = Duration::from_millis(100);
/// Lines of output of a run that are logged, and bytes of each.
const LINES_MAX: usize = 20;
/// Most bytes of a logged line.
const LINE_MAX: usize = 400;

/// Why a hook cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is no such user.
    #[error(
        "action {action}: there is no user {user:?}; give `user` one that `getent passwd` shows"
    )]
    NoUser {
        /// Name of the action.
        action: String,
        /// The user.
        user: String,
    },
    /// A webhook cannot be set up.
    #[error("action {action}")]
    Webhook {
        /// Name of the action.
        action: String,
        /// Why.
        source: WebhookError,
    },
    /// The user is not known.
    #[error("action {action}: cannot look up user {user:?}")]
    Lookup {
        /// Name of the action.
        action: String,
        /// The user.
        user: String,
        /// What the system answered.
        source: nix::Error,
    },
}

/// The user whose rights a program has.
#[derive(Debug)]
struct Account {
    name: String,
    home: String,
    shell: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<libc::gid_t>,
}

impl Account {
    fn of(action: &str, user: &str) -> Result<Self, HookError> {
        let lookup = |source| HookError::Lookup {
            action: action.to_owned(),
            user: user.to_owned(),
            source,
        };
        let found = User::from_name(user).map_err(lookup)?;
        let found = found.ok_or_else(|| HookError::NoUser {
            action: action.to_owned(),
            user: user.to_owned(),
        })?;
        // A name with a zero byte is no user's.
        let name = CString::new(user).unwrap_or_default();
        let groups = getgrouplist(&name, found.gid).map_err(lookup)?;
        Ok(Self {
            name: found.name,
            home: found.dir.to_string_lossy().into_owned(),
            shell: found.shell.to_string_lossy().into_owned(),
            uid: found.uid,
            gid: found.gid,
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        })
    }
}

/// What a hook does.
#[derive(Debug)]
enum Target {
    /// It runs a program.
    Program(Vec<String>, Option<Account>),
    /// It asks a server.
    Server(Webhook),
}

/// A hook of the configuration.
#[derive(Debug)]
struct Hook {
    name: String,
    selector: Selector,
    target: Target,
    timeout: Duration,
    retries: u32,
}

/// What waits for a hook, of one service.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Arc<Happened>>,
    is_running: bool,
    /// How many were left out since the last run.
    missed: u64,
}

/// Name of the action and of the service.
type Key = (String, String);

/// A run that is over.
#[derive(Debug)]
pub struct Done {
    key: Key,
    seq: u64,
    run: String,
    result: Result<(), String>,
    attempts: u32,
    took: Duration,
}

impl Done {
    /// Name of the action.
    pub fn action(&self) -> &str {
        &self.key.0
    }

    /// Why it failed, if it did.
    pub const fn result(&self) -> &Result<(), String> {
        &self.result
    }
}

/// All hooks, what waits for them and what runs.
#[derive(Debug, Default)]
pub struct Hooks {
    hooks: HashMap<String, Arc<Hook>>,
    queues: HashMap<Key, Queue>,
    running: HashMap<String, usize>,
    tasks: JoinSet<Done>,
    /// What each task is about.
    begun: HashMap<Id, (Key, Arc<Happened>)>,
    /// The sequence of the numbers below.
    run: String,
    /// Numbers of events that are not done.
    open: BTreeSet<(u64, Key)>,
    /// The last event that was seen.
    seen: u64,
}

impl Hooks {
    /// Has these actions from now on. What waits for a hook that stays goes on.
    ///
    /// # Errors
    /// When a hook names a user that there is not; then nothing is changed.
    pub fn set(&mut self, actions: &[Action]) -> Result<(), HookError> {
        let mut hooks = HashMap::new();
        for action in actions {
            let (target, timeout, retries) = match &action.kind {
                ActionKind::Hook {
                    command,
                    user,
                    timeout,
                    retries,
                } => {
                    let account = user.as_deref();
                    let account = account.map(|user| Account::of(&action.name, user));
                    let target = Target::Program(command.clone(), account.transpose()?);
                    (target, *timeout, *retries)
                }
                ActionKind::Webhook {
                    url,
                    headers_file,
                    timeout,
                    retries,
                } => {
                    let webhook = Webhook::of(url, headers_file.as_deref());
                    let webhook = webhook.map_err(|source| HookError::Webhook {
                        action: action.name.clone(),
                        source,
                    })?;
                    (Target::Server(webhook), *timeout, *retries)
                }
                _ => continue,
            };
            let hook = Hook {
                name: action.name.clone(),
                selector: Selector::of(action),
                target,
                timeout,
                retries,
            };
            hooks.insert(action.name.clone(), Arc::new(hook));
        }
        self.hooks = hooks;
        let hooks = &self.hooks;
        self.queues
            .retain(|(action, _), queue| queue.is_running || hooks.contains_key(action));
        self.open
            .retain(|(_, (action, _))| hooks.contains_key(action));
        Ok(())
    }

    /// Whether there is any hook.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Whether any program runs.
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Goes on from this place in the event stream.
    pub fn resume(&mut self, cursor: &Cursor) {
        self.run.clone_from(&cursor.run);
        self.seen = cursor.seq;
    }

    /// Begins at this place in the event stream, unless it goes on from another one.
    pub fn begin(&mut self, cursor: Cursor) {
        if self.run.is_empty() {
            self.resume(&cursor);
        }
    }

    /// Up to which event everything is done; `None` if none was seen.
    pub fn cursor(&self) -> Option<Cursor> {
        let seq = match self.open.first() {
            Some((first, _)) => first.saturating_sub(1),
            None => self.seen,
        };
        (!self.run.is_empty()).then(|| Cursor {
            run: self.run.clone(),
            seq,
        })
    }

    /// The last event that was seen; `None` if none was.
    pub fn seen(&self) -> Option<Cursor> {
        (!self.run.is_empty()).then(|| Cursor {
            run: self.run.clone(),
            seq: self.seen,
        })
    }

    /// Takes an event.
    pub fn take(&mut self, happened: Happened) {
        let event = &happened.event;
        if event.run != self.run {
            // What still runs was of another sequence; the order of numbers says nothing between the two.
            self.run.clone_from(&event.run);
            self.open.clear();
        }
        self.seen = event.seq;
        let (Some(service), true) = (event.service.clone(), is_for_hooks(event)) else {
            return;
        };
        let happened = Arc::new(happened);
        let names: Vec<String> = self
            .hooks
            .values()
            .filter(|hook| hook.selector.matches(&service))
            .map(|hook| hook.name.clone())
            .collect();
        for name in names {
            let key = (name, service.clone());
            self.open.insert((happened.event.seq, key.clone()));
            let queue = self.queues.entry(key.clone()).or_default();
            queue.events.push_back(happened.clone());
            if queue.events.len() > WAITING_MAX {
                queue.missed += 1;
                if let Some(left_out) = queue.events.pop_front() {
                    self.open.remove(&(left_out.event.seq, key.clone()));
                }
            }
            self.start(&key);
        }
    }

    /// Waits for a run to end, and begins the next ones; for ever while none runs.
    pub async fn done(&mut self) -> Done {
        loop {
            let (id, done) = match self.tasks.join_next_with_id().await {
                Some(Ok((id, done))) => (id, Some(done)),
                Some(Err(error)) => (error.id(), None),
                None => std::future::pending().await,
            };
            let Some((key, happened)) = self.begun.remove(&id) else {
                continue;
            };
            let done = done.unwrap_or_else(|| Done {
                key,
                seq: happened.event.seq,
                run: happened.event.run.clone(),
                result: Err("this process failed; this is a bug, please report it".to_owned()),
                attempts: 1,
                took: Duration::ZERO,
            });
            self.finish(&done);
            return done;
        }
    }

    fn finish(&mut self, done: &Done) {
        if done.run == self.run {
            self.open.remove(&(done.seq, done.key.clone()));
        }
        if let Some(running) = self.running.get_mut(&done.key.0) {
            *running = running.saturating_sub(1);
        }
        if let Some(queue) = self.queues.get_mut(&done.key) {
            queue.is_running = false;
        }
        // Those of other services may have waited for a place.
        let waiting: Vec<Key> = self
            .queues
            .iter()
            .filter(|((action, _), queue)| {
                *action == done.key.0 && !queue.is_running && !queue.events.is_empty()
            })
            .map(|(key, _)| key.clone())
            .take(RUNNING_MAX)
            .collect();
        for key in waiting {
            self.start(&key);
        }
        self.queues
            .retain(|_, queue| queue.is_running || !queue.events.is_empty());
    }

    fn start(&mut self, key: &Key) {
        let running = self.running.entry(key.0.clone()).or_default();
        let (Some(hook), Some(queue)) = (self.hooks.get(&key.0), self.queues.get_mut(key)) else {
            return;
        };
        if queue.is_running || *running >= RUNNING_MAX {
            return;
        }
        let Some(happened) = queue.events.pop_front() else {
            return;
        };
        *running += 1;
        queue.is_running = true;
        let missed = std::mem::take(&mut queue.missed);
        let begun = (key.clone(), happened.clone());
        let (hook, key) = (hook.clone(), key.clone());
        let task = self.tasks.spawn(async move {
            let began = tokio::time::Instant::now();
            let (result, attempts) = run(&hook, &happened, missed).await;
            Done {
                key,
                seq: happened.event.seq,
                run: happened.event.run.clone(),
                result,
                attempts,
                took: began.elapsed(),
            }
        });
        self.begun.insert(task.id(), begun);
    }
}

impl Done {
    /// Logs how it went.
    pub fn log(&self) {
        let Self {
            key: (action, service),
            seq,
            attempts,
            ..
        } = self;
        let took = self.took.as_millis();
        match &self.result {
            Ok(()) => {
                tracing::info!("action {action}: done for event {seq} of {service} in {took} ms");
            }
            Err(why) => tracing::error!(
                "action {action}: given up for event {seq} of {service} after {attempts} runs: {why}"
            ),
        }
    }
}

/// Whether hooks run for an event: what changes for a service or a member, to something that is known.
fn is_for_hooks(event: &EventLine) -> bool {
    let is_known_kind = matches!(event.kind.as_str(), "verdict" | "admin");
    let counts = event.effective.as_deref().unwrap_or(&event.to);
    is_known_kind && event.behind.is_none() && event.service.is_some() && counts != "unknown"
}

/// Runs a program, or asks a server, until it succeeds or was repeated often enough.
async fn run(hook: &Hook, happened: &Happened, missed: u64) -> (Result<(), String>, u32) {
    let mut pause = PAUSE;
    let mut attempt = 1;
    loop {
        let result = match &hook.target {
            Target::Program(command, account) => {
                run_once(hook, command, account.as_ref(), happened, missed, attempt).await
            }
            Target::Server(webhook) => post(hook, webhook, happened).await,
        };
        let (Err(why), true) = (&result, attempt <= hook.retries) else {
            return (result, attempt);
        };
        tracing::warn!(
            "action {}: run {attempt} for event {} failed: {why}; again in {} ms",
            hook.name,
            happened.event.seq,
            pause.as_millis()
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        attempt += 1;
    }
}

/// Asks a server once.
async fn post(hook: &Hook, webhook: &Webhook, happened: &Happened) -> Result<(), String> {
    let EventLine { run, seq, .. } = &happened.event;
    let key = format!("{run}:{seq}");
    match timeout(hook.timeout, webhook.post(&happened.line, &key)).await {
        Ok(result) => result,
        Err(_) => {
            let limit = hook.timeout.as_millis();
            Err(format!("no answer of {webhook:?} within {limit} ms"))
        }
    }
}

/// Runs a program once.
async fn run_once(
    hook: &Hook,
    words: &[String],
    account: Option<&Account>,
    happened: &Happened,
    missed: u64,
    attempt: u32,
) -> Result<(), String> {
    let [program, arguments @ ..] = words else {
        return Err("there is no program".to_owned());
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    environment(&mut command, hook, &happened.event, missed, attempt);
    if let Some(account) = account {
        command.envs([
            ("USER", &account.name),
            ("LOGNAME", &account.name),
            ("HOME", &account.home),
            ("SHELL", &account.shell),
        ]);
        become_user(&mut command, account);
    }
    let mut child = command.spawn().map_err(|error| {
        let hint = match (error.raw_os_error(), account) {
            (Some(libc::EPERM), Some(_)) => {
                "; to run it as another user needs CAP_SETUID, CAP_SETGID and CAP_KILL: see the unit's comment"
            }
            _ => "; check the program and its permissions",
        };
        format!("cannot start {program}: {error}{hint}")
    })?;
    let group = child.id().map(|id| Pid::from_raw(id as i32));
    let mut output = Output::default();
    let finished = timeout(hook.timeout, talk(&mut child, &happened.line, &mut output)).await;
    let result = match finished {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(ended(status)),
        Ok(Err(error)) => Err(format!("cannot wait for it: {error}")),
        Err(_) => {
            kill(&mut child, group).await;
            Err(format!(
                "it took longer than {} ms, and was killed with all of its process group",
                hook.timeout.as_millis()
            ))
        }
    };
    output.log(&hook.name);
    result
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => format!("{status}"),
    }
}

/// Gives a program its event and reads what it writes, until it ends.
async fn talk(child: &mut Child, line: &str, output: &mut Output) -> io::Result<ExitStatus> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input may still succeed.
            let _ = stdin.write_all(format!("{line}\n").as_bytes()).await;
        }
    };
    let (mut first, mut second) = (Output::default(), Output::default());
    let status = {
        let read = async {
            tokio::join!(give, drain(stdout, &mut first), drain(stderr, &mut second));
        };
        tokio::pin!(read);
        tokio::select! {
            status = child.wait() => {
                // Processes that it left may hold the pipes open.
                let _ = timeout(REST, &mut read).await;
                status
            }
            () = &mut read => child.wait().await,
        }
    };
    output.add(first);
    output.add(second);
    status
}

async fn drain(from: Option<impl AsyncRead + Unpin>, output: &mut Output) {
    let Some(mut from) = from else { return };
    let mut bytes = [0; 4_096];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        output.take(&bytes[..len]);
    }
}

/// What a program wrote, as far as it is logged.
#[derive(Debug, Default)]
struct Output {
    lines: Vec<String>,
    current: Vec<u8>,
    left_out: usize,
}

impl Output {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.current.len() < LINE_MAX => self.current.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.current);
        match self.lines.len() < LINES_MAX {
            true => {
                let line = String::from_utf8_lossy(&line);
                let plain = line.chars().filter(|c| !c.is_control() || *c == '\t');
                self.lines.push(plain.collect());
            }
            false => self.left_out += 1,
        }
    }

    fn add(&mut self, mut other: Self) {
        if !other.current.is_empty() {
            other.end_line();
        }
        self.lines.append(&mut other.lines);
        self.left_out += other.left_out;
    }

    fn log(&self, action: &str) {
        for line in &self.lines {
            tracing::info!("action {action}: says: {line}");
        }
        if self.left_out > 0 {
            tracing::info!("action {action}: says {} more lines", self.left_out);
        }
    }
}

/// Ends all processes of a group: by SIGTERM, and after a while by SIGKILL.
async fn kill(child: &mut Child, group: Option<Pid>) {
    let signal = |signal| {
        if let Some(group) = group {
            // They may be gone already.
            let _ = killpg(group, signal);
        }
    };
    signal(Signal::SIGTERM);
    let _ = timeout(TERM, child.wait()).await;
    signal(Signal::SIGKILL);
    let _ = timeout(TERM, child.wait()).await;
}

/// The environment of a program: what the event says, and nothing of this process but the search path.
fn environment(command: &mut Command, hook: &Hook, event: &EventLine, missed: u64, attempt: u32) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let effective = event.effective.as_ref().unwrap_or(&event.to);
    let time = event.time.map(|time| time.to_string()).unwrap_or_default();
    command.env_clear().envs([
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TRACKER_ACTION", hook.name.clone()),
        ("TRACKER_SEQ", event.seq.to_string()),
        ("TRACKER_RUN", event.run.clone()),
        ("TRACKER_TIME", time),
        ("TRACKER_KIND", event.kind.clone()),
        ("TRACKER_SERVICE", text(&event.service)),
        ("TRACKER_MEMBER", text(&event.member)),
        ("TRACKER_FROM", event.from.clone()),
        ("TRACKER_TO", event.to.clone()),
        ("TRACKER_EFFECTIVE", effective.clone()),
        ("TRACKER_CAUSE", event.cause.clone()),
        ("TRACKER_DETAIL", text(&event.detail)),
        ("TRACKER_ATTEMPT", attempt.to_string()),
        ("TRACKER_MISSED", missed.to_string()),
    ]);
}

/// Has a program run with the rights of a user and of the user's groups.
fn become_user(command: &mut Command, account: &Account) {
    let (uid, gid) = (account.uid.as_raw(), account.gid.as_raw());
    let groups = account.groups.clone();
    let switch = move || {
        // By system call: the functions of glibc have other threads do the same, and the child has no other threads.
        // SAFETY: the kernel reads that many group numbers from the vector, which the closure owns; the other two calls take
        // numbers alone. All three are safe after fork.
        let results = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                libc::syscall(libc::SYS_setgid, gid),
                libc::syscall(libc::SYS_setuid, uid),
            ]
        };
        match results {
            [0, 0, 0] => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(switch) };
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{AtStart, WhenAllDown};

    fn hook(script: &str, timeout: Duration, retries: u32, user: Option<&str>) -> Action {
        Action {
            name: "h".to_owned(),
            services: vec!["fw-*".to_owned()],
            when_all_down: WhenAllDown::Keep,
            bypass_via: None,
            at_start: AtStart::All,
            kind: ActionKind::Hook {
                command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
                user: user.map(str::to_owned),
                timeout,
                retries,
            },
        }
    }

    fn event(seq: u64, service: &str, to: &str) -> Happened {
        let line = format!(
            r#"{{"seq":{seq},"run":"ab","kind":"verdict","service":"{service}","member":null,"behind":null,"from":"x","to":"{to}","cause":"no-reply"}}"#
        );
        Happened {
            event: serde_json::from_str(&line).unwrap(),
            line,
        }
    }

    fn hooks(action: &Action) -> Hooks {
        let mut hooks = Hooks::default();
        hooks.set(std::slice::from_ref(action)).unwrap();
        hooks
    }

    async fn all(hooks: &mut Hooks, count: usize) -> Vec<Done> {
        let mut done = Vec::new();
        for _ in 0..count {
            let one = timeout(Duration::from_secs(60), hooks.done()).await;
            done.push(one.expect("a run ends"));
        }
        done
    }

    const LONG: Duration = Duration::from_secs(30);

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[tokio::test]
    async fn events_of_a_service_come_one_after_the_other_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!(
            "read line; echo \"begin $TRACKER_SERVICE $TRACKER_SEQ $TRACKER_TO\" >> {0}; sleep 0.02; \
             echo \"$line\" | grep -q '\"seq\":'$TRACKER_SEQ, && echo \"end $TRACKER_SERVICE $TRACKER_SEQ\" >> {0}",
            log.display()
        );
        let mut hooks = hooks(&hook(&script, LONG, 0, None));
        for seq in 1..=6 {
            let service = if seq % 2 == 0 { "fw-2" } else { "fw-1" };
            hooks.take(event(seq, service, "down"));
        }
        // Not for it: another service, and what is not known.
        hooks.take(event(7, "lb", "down"));
        hooks.take(event(8, "fw-1", "unknown"));
        assert_eq!(hooks.cursor().map(|cursor| cursor.seq), Some(0));
        for done in all(&mut hooks, 6).await {
            assert_eq!(done.result, Ok(()));
        }
        assert!(hooks.is_idle());
        let cursor = hooks.cursor().unwrap();
        assert_eq!((cursor.run.as_str(), cursor.seq), ("ab", 8));
        let text = read(&log);
        for service in ["fw-1", "fw-2"] {
            let of: Vec<_> = text.lines().filter(|line| line.contains(service)).collect();
            let first = if service == "fw-1" { 1 } else { 2 };
            let expected: Vec<_> = [first, first + 2, first + 4]
                .iter()
                .flat_map(|seq| {
                    [
                        format!("begin {service} {seq} down"),
                        format!("end {service} {seq}"),
                    ]
                })
                .collect();
            assert_eq!(of, expected);
        }
    }

    #[tokio::test]
    async fn what_fails_is_repeated_and_what_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!(
            "echo $TRACKER_ATTEMPT >> {}; test $TRACKER_ATTEMPT = 3",
            log.display()
        );
        let mut failing = hooks(&hook(&script, LONG, 5, None));
        failing.take(event(1, "fw-1", "down"));
        let done = all(&mut failing, 1).await;
        assert_eq!((&done[0].result, done[0].attempts), (&Ok(()), 3));
        assert_eq!(read(&log), "1\n2\n3\n");

        let left = directory.path().join("left");
        // Its child has the pipes, and ignores SIGTERM.
        let script = format!(
            "sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 0.1; done' & wait",
            left.display()
        );
        let mut hanging = hooks(&hook(&script, Duration::from_millis(500), 0, None));
        hanging.take(event(1, "fw-1", "down"));
        let done = all(&mut hanging, 1).await;
        let why = done[0].result.clone().unwrap_err();
        assert!(why.contains("longer than 500 ms"), "{why}");
        let pid: i32 = read(&left).trim().parse().unwrap();
        let is_gone = || {
            // A process that is not waited for by its new parent stays as a zombie.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let begun = std::time::Instant::now();
        while !is_gone() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{pid} still runs"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut absent = hooks(&Action {
            kind: ActionKind::Hook {
                command: vec!["/nonexistent/program".to_owned()],
                user: None,
                timeout: LONG,
                retries: 0,
            },
            ..hook("", LONG, 0, None)
        });
        absent.take(event(1, "fw-1", "down"));
        let done = all(&mut absent, 1).await;
        let why = done[0].result.clone().unwrap_err();
        assert!(
            why.starts_with("cannot start /nonexistent/program: "),
            "{why}"
        );
    }

    #[tokio::test]
    async fn a_slow_hook_loses_the_oldest_and_is_told_how_many() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let gate = directory.path().join("gate");
        let script = format!(
            "while ! test -e {}; do sleep 0.02; done; echo $TRACKER_SEQ $TRACKER_MISSED >> {}",
            gate.display(),
            log.display()
        );
        let mut hooks = hooks(&hook(&script, LONG, 0, None));
        let count = 1 + WAITING_MAX as u64 + 5;
        for seq in 1..=count {
            hooks.take(event(seq, "fw-1", "down"));
        }
        std::fs::write(gate, "").unwrap();
        let done = all(&mut hooks, 1 + WAITING_MAX).await;
        assert_eq!(done.len(), 65);
        let text = read(&log);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["1 0", "7 5", "8 0"]);
        assert_eq!(lines.last(), Some(&"70 0"));
        assert_eq!(hooks.cursor().map(|cursor| cursor.seq), Some(count));
    }

    #[tokio::test]
    async fn it_runs_as_its_user_and_with_a_clean_environment() {
        let unknown = hook("", LONG, 0, Some("no-such-user-x"));
        let error = Hooks::default().set(&[unknown]).unwrap_err().to_string();
        assert!(error.contains("no-such-user-x"), "{error}");
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root becomes another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .unwrap();
        let script = format!(
            "{{ id -un; id -Gn; echo \"$USER $HOME\"; env | grep -c ^CARGO; pwd; }} > {}",
            log.display()
        );
        let mut hooks = hooks(&hook(&script, LONG, 0, Some("nobody")));
        hooks.take(event(1, "fw-1", "up"));
        let done = all(&mut hooks, 1).await;
        assert_eq!(done[0].result, Ok(()));
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let group = nix::unistd::Group::from_gid(nobody.gid).unwrap().unwrap();
        let expected = format!(
            "nobody\n{}\nnobody {}\n0\n/\n",
            group.name,
            nobody.dir.display()
        );
        assert_eq!(read(&log), expected);
    }

    #[test]
    fn output_is_bounded() {
        let mut output = Output::default();
        for _ in 0..1_000 {
            output.take("x\u{1b}[31m".repeat(1_000).as_bytes());
            output.take(b"\n");
        }
        assert_eq!((output.lines.len(), output.left_out), (LINES_MAX, 980));
        assert!(
            output
                .lines
                .iter()
                .all(|line| line.len() <= LINE_MAX && !line.contains('\u{1b}'))
        );
    }
}
