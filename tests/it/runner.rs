//! `apscli runner` as a program, spoken to as the operator does.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::RwLockReadGuard;
use std::time::Duration;

use apscli::engine::event::{CancelCause, Ending, KillCause};
use apscli::engine::spec::{Action, Cmd, EnvText};
use apscli::executor::decision::Work;
use apscli::executor::runner::{Piece, Reply, Request, Script, frame, length};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::fence::in_peace;
use crate::hostile::WITHOUT;
use crate::program::{Done, Place, lives, signal, until};

struct Runner {
    place: Place,
    process: Child,
    stream: UnixStream,
    // Last, so that it is kept until the process has ended.
    _peace: RwLockReadGuard<'static, ()>,
}

impl Runner {
    fn new(more: &[&str]) -> Self {
        Self::by(&[], more)
    }

    /// Started by a command that stands before it.
    fn by(before: &[&str], more: &[&str]) -> Self {
        let peace = in_peace();
        let place = Place::new();
        place.write("without.py", WITHOUT);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut args = vec!["runner", "--folder", "runner"];
        args.extend(more);
        let own = place.command(&args);
        let mut words = before.iter().map(OsStr::new).collect::<Vec<_>>();
        words.push(own.get_program());
        words.extend(own.get_args());
        let environment = own
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        let process = Command::new(words[0])
            .args(&words[1..])
            .envs(environment)
            .current_dir(place.dir.path())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self {
            place,
            process,
            stream: ours,
            _peace: peace,
        }
    }

    /// One that serves on a socket in this folder, where there may have been one before.
    fn served(place: Place) -> Self {
        let peace = in_peace();
        let args = [
            "runner", "--socket", "socket", "--folder", "runner", "--slots", "2",
        ];
        let mut process = place.command(&args).spawn().unwrap();
        let path = place.path("socket");
        let mut stream = None;
        until("it listens", || {
            assert_eq!(process.try_wait().unwrap(), None, "it has ended");
            stream = UnixStream::connect(&path).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self {
            place,
            process,
            stream,
            _peace: peace,
        }
    }

    /// What a liveness probe says.
    fn check(&self) -> Done {
        self.place
            .apscli(&["runner", "--check", "--socket", "socket"])
    }

    fn ask(&mut self, request: &Request) {
        self.stream.write_all(&frame(request).unwrap()).unwrap();
    }

    fn hear(&mut self) -> Reply {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; length(head).unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn start(&mut self, run: &str, node: &str, words: &[&str]) {
        let [program, args @ ..] = words else {
            panic!()
        };
        let cmd = Cmd {
            program: EnvText::literal(*program),
            args: args.iter().map(|word| EnvText::literal(*word)).collect(),
            env: Vec::new(),
        };
        let work = Work::new(Action::Cmd(cmd), Vec::new(), Duration::from_secs(1));
        self.ask(&Request::Start {
            piece: piece(run, node),
            work: Box::new(work),
            network: false,
        });
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn piece(run: &str, node: &str) -> Piece {
    Piece {
        run: run.to_owned(),
        node: node.to_owned(),
        attempt: 1,
    }
}

#[test]
fn it_carries_out_what_it_is_asked_for_and_says_what_was_enforced() {
    let mut runner = Runner::new(&["--slots", "1"]);
    assert!(matches!(runner.hear(), Reply::Hello { slots: 1, .. }));
    runner.ask(&Request::Files {
        run: "r".to_owned(),
        files: vec![Script {
            path: "sub/hello.sh".to_owned(),
            mode: 0o555,
            content: "IyEvYmluL3NoCmVjaG8gIltPVVRQVVRdaGVsbG8iCg==".to_owned(),
        }],
    });
    runner.start("r", "a", &["sub/hello.sh"]);
    assert!(matches!(runner.hear(), Reply::Began { piece: it } if it == piece("r", "a")));
    let Reply::Ended {
        outcome, enforced, ..
    } = runner.hear()
    else {
        panic!("no end")
    };
    assert_eq!(outcome.ending, Ending::Exited(0));
    assert_eq!(outcome.captured.output.unwrap().to_plain_text(), "hello");
    let enforced = enforced.unwrap();
    assert!(enforced.contains("seccomp, no network"), "{enforced}");
    // Another run does not see those files.
    runner.start("s", "a", &["sub/hello.sh"]);
    runner.hear();
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    assert!(
        matches!(outcome.ending, Ending::NotStarted(_)),
        "{outcome:?}"
    );
}

/// What the kernel cannot do is refused, or is said.
#[test]
fn without_landlock_it_starts_nothing_unless_that_is_good_enough() {
    let before = ["python3", "without.py", "landlock"];
    for (mode, begins) in [("required", false), ("best-effort", true)] {
        let mut runner = Runner::by(&before, &["--slots", "1", "--sandbox", mode]);
        runner.hear();
        runner.start("r", "a", &["true"]);
        runner.hear();
        let Reply::Ended {
            outcome, enforced, ..
        } = runner.hear()
        else {
            panic!("no end")
        };
        if begins {
            assert_eq!(outcome.ending, Ending::Exited(0));
            let enforced = enforced.unwrap();
            assert!(
                enforced.contains("no landlock (") && enforced.contains("seccomp, no network"),
                "{enforced}"
            );
        } else {
            let Ending::NotStarted(why) = &outcome.ending else {
                panic!("{outcome:?}")
            };
            let wanted = "the sandbox is required, and cannot be had: ";
            assert!(why.starts_with(wanted), "{why}");
            assert_eq!(enforced, None);
        }
    }
}

/// An end that is longer than a frame arrives as one that is not.
#[test]
fn what_gives_back_too_much_has_ended_all_the_same() {
    let mut runner = Runner::new(&["--slots", "1"]);
    runner.hear();
    // As JSON, each of these bytes takes six.
    let line = "printf \"[$1]\"; head -c 1000000 /dev/zero | tr '\\0' '\\1'; echo";
    let script = format!("say() {{ {line}; }}; say OUTPUT; say ERR_MSG; say INFO");
    runner.start("r", "a", &["sh", "-c", &script]);
    assert!(matches!(runner.hear(), Reply::Began { .. }));
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    let why = "it gave back more than 8 MiB".to_owned();
    assert_eq!(outcome.ending, Ending::NoResult(why));
    runner.start("r", "b", &["true"]);
    assert!(matches!(runner.hear(), Reply::Began { .. }));
    assert!(matches!(runner.hear(), Reply::Ended { .. }));
}

/// So many bytes, and not so many for each message.
#[test]
fn the_files_of_a_run_have_a_limit() {
    let mut runner = Runner::new(&["--slots", "1"]);
    runner.hear();
    for part in 0..5 {
        let content = STANDARD.encode(vec![b'x'; 4 * 1024 * 1024]);
        let path = format!("part{part}");
        let files = vec![Script {
            path,
            mode: 0o444,
            content,
        }];
        runner.ask(&Request::Files {
            run: "r".to_owned(),
            files,
        });
    }
    runner.start("r", "a", &["true"]);
    assert!(matches!(runner.hear(), Reply::Began { .. }));
    let kept = std::fs::read_dir(runner.place.path("runner/scripts/r")).unwrap();
    assert_eq!(kept.count(), 4);
}

#[test]
fn what_has_no_place_waits_and_runs_take_turns() {
    let mut runner = Runner::new(&["--slots", "1"]);
    runner.hear();
    runner.start("r", "first", &["sleep", "1000"]);
    assert!(matches!(runner.hear(), Reply::Began { .. }));
    for (run, node) in [("r", "second"), ("r", "third"), ("s", "other")] {
        runner.start(run, node, &["true"]);
        let Reply::Waits { piece: it, why } = runner.hear() else {
            panic!("it does not wait")
        };
        assert_eq!(it, piece(run, node));
        assert_eq!(why, "all 1 places of the runner are taken");
    }
    let cause = KillCause::Cancel(CancelCause::Asked);
    runner.ask(&Request::Kill {
        piece: piece("r", "third"),
        cause,
    });
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    assert_eq!(outcome.ending, Ending::Killed(cause));
    runner.ask(&Request::Kill {
        piece: piece("r", "first"),
        cause,
    });
    let mut order = Vec::new();
    while order.len() < 3 {
        if let Reply::Ended { piece, .. } = runner.hear() {
            order.push(piece.node);
        }
    }
    assert_eq!(order, ["first", "other", "second"]);
}

#[test]
fn nothing_outlives_the_connection_nor_the_runner() {
    for killed in [false, true] {
        let mut runner = Runner::new(&[]);
        runner.hear();
        let script = "setsid sh -c 'trap \"\" TERM; echo $$ > pid; sleep 1000 & wait' & wait";
        runner.start("r", "a", &["sh", "-c", script]);
        runner.hear();
        let nodes = runner.place.path("runner/nodes");
        let pid = || {
            let folder = std::fs::read_dir(&nodes).ok()?.next()?.ok()?.path();
            let pid = std::fs::read_to_string(folder.join("pid")).ok()?;
            pid.ends_with('\n').then_some(pid)
        };
        until("the process", || pid().is_some());
        let pid = pid().unwrap();
        if killed {
            signal(&runner.process, Signal::KILL);
        } else {
            runner.stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        runner.process.wait().unwrap();
        until("its end", || !lives(&pid));
        until("no folder", || {
            std::fs::read_dir(&nodes).map_or(true, |mut it| it.next().is_none())
        });
        if !killed {
            assert!(!runner.place.path("runner").exists());
        }
    }
}

#[test]
fn who_uses_more_than_there_is_for_one_is_ended() {
    let mut runner = Runner::new(&["--processes", "20"]);
    runner.hear();
    let script =
        "for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4 5; do sleep 10 & done; done; wait";
    runner.start("r", "a", &["sh", "-c", script]);
    runner.hear();
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    let why = "it used more than 20 processes, and was ended".to_owned();
    assert_eq!(outcome.ending, Ending::NoResult(why));
}

/// The kernel itself ends who computes for longer than he may.
#[test]
fn who_computes_for_too_long_is_ended() {
    let mut runner = Runner::new(&["--cpu", "1"]);
    runner.hear();
    runner.start("r", "a", &["sh", "-c", "while :; do :; done"]);
    runner.hear();
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    assert!(
        matches!(outcome.ending, Ending::Signalled(_)),
        "{outcome:?}"
    );
}

#[test]
fn a_socket_is_for_its_own_user_only() {
    let _peace = in_peace();
    let place = Place::new();
    let args = ["runner", "--socket", "socket", "--folder", "runner"];
    let mut process = place.command(&args).spawn().unwrap();
    let path = place.path("socket");
    until("it listens", || path.exists());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; length(head).unwrap()];
    stream.read_exact(&mut body).unwrap();
    let hello: Reply = serde_json::from_slice(&body).unwrap();
    assert!(matches!(hello, Reply::Hello { .. }));
    process.kill().unwrap();
    process.wait().unwrap();
}

/// What processes of the runner's own user can do to it from outside.
/// What breaks a runner, and its name.
type Attack = (&'static str, fn(&Runner));

fn attacks() -> [Attack; 6] {
    [
        ("nodes closed", |runner| {
            let closed = std::fs::Permissions::from_mode(0o000);
            std::fs::set_permissions(runner.place.path("runner/nodes"), closed).unwrap();
        }),
        ("nodes gone", |runner| {
            let nodes = runner.place.path("runner/nodes");
            std::fs::rename(nodes, runner.place.path("elsewhere")).unwrap();
        }),
        ("logs gone", |runner| {
            std::fs::remove_dir_all(runner.place.path("runner/logs")).unwrap();
        }),
        ("descriptors", |runner| {
            let few = Rlimit {
                current: Some(4),
                maximum: Some(4),
            };
            let pid = Pid::from_child(&runner.process);
            prlimit(Some(pid), Resource::Nofile, few).unwrap();
        }),
        ("socket gone", |runner| {
            std::fs::remove_file(runner.place.path("socket")).unwrap();
        }),
        ("socket replaced", |runner| {
            std::fs::remove_file(runner.place.path("socket")).unwrap();
            std::fs::write(runner.place.path("socket"), "").unwrap();
        }),
    ]
}

/// A runner that was broken from outside ends, reports nothing that the attack brought about, and
/// the next one works in the same place.
#[test]
fn broken_runner_ends_and_the_next_one_works() {
    for (name, attack) in attacks() {
        let mut runner = Runner::served(Place::new());
        runner.hear();
        let healthy = runner.check();
        assert_eq!(healthy.status, 0, "{name}: {}", healthy.stderr);
        let script = "echo $$ > pid; exec sleep 1000";
        runner.start("r", "long", &["sh", "-c", script]);
        assert!(matches!(runner.hear(), Reply::Began { .. }), "{name}");
        attack(&runner);
        runner.start("r", "next", &["true"]);
        until(name, || runner.process.try_wait().unwrap().is_some());
        let status = runner.process.wait().unwrap();
        assert_eq!(status.code(), Some(3), "{name}");
        assert_ne!(runner.check().status, 0, "{name}");
        let mut told = Vec::new();
        runner.stream.read_to_end(&mut told).unwrap();
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains("NotStarted"), "{name}: {told}");

        // Restarted, as the kubelet does, in what was left.
        let place = std::mem::replace(&mut runner.place, Place::new());
        drop(runner);
        let mut next = Runner::served(place);
        next.hear();
        let healthy = next.check();
        assert_eq!(healthy.status, 0, "{name}: {}", healthy.stderr);
        next.start("r", "again", &["true"]);
        assert!(matches!(next.hear(), Reply::Began { .. }), "{name}");
        let Reply::Ended { outcome, .. } = next.hear() else {
            panic!("{name}: no end")
        };
        assert_eq!(outcome.ending, Ending::Exited(0), "{name}");
    }
}

/// Also one whose connection is its standard input, as an operator's child has it.
#[test]
fn broken_child_ends_and_leaves_nothing_running() {
    let mut runner = Runner::new(&["--slots", "1"]);
    runner.hear();
    let script = "setsid sh -c 'echo $$ > pid; sleep 1000' & wait";
    runner.start("r", "a", &["sh", "-c", script]);
    runner.hear();
    let nodes = runner.place.path("runner/nodes");
    let pid = || {
        let folder = std::fs::read_dir(&nodes).ok()?.next()?.ok()?.path();
        let pid = std::fs::read_to_string(folder.join("pid")).ok()?;
        pid.ends_with('\n').then_some(pid)
    };
    until("the process", || pid().is_some());
    let pid = pid().unwrap();
    std::fs::set_permissions(&nodes, std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(runner.process.wait().unwrap().code(), Some(3));
    until("its end", || !lives(&pid));
}

#[test]
fn check_of_a_stopped_runner_fails_in_time() {
    let mut runner = Runner::served(Place::new());
    runner.hear();
    signal(&runner.process, Signal::STOP);
    let told = runner.check();
    signal(&runner.process, Signal::CONT);
    assert_ne!(told.status, 0);
    assert!(
        told.stderr.contains("has not answered within 20 s"),
        "{}",
        told.stderr
    );
    assert_eq!(runner.check().status, 0);
}

/// A machine that cannot keep a run's files is not the node's fault, and they can be sent again.
#[test]
fn unkept_files_are_lost_and_can_be_sent_again() {
    let mut runner = Runner::new(&["--slots", "1"]);
    runner.hear();
    let files = Request::Files {
        run: "r".to_owned(),
        files: vec![Script {
            path: "hello.sh".to_owned(),
            mode: 0o555,
            content: STANDARD.encode("#!/bin/sh\necho '[OUTPUT]hello'\n"),
        }],
    };
    let in_the_way = runner.place.path("runner/scripts/r");
    std::fs::write(&in_the_way, "").unwrap();
    runner.ask(&files);
    runner.start("r", "a", &["./hello.sh"]);
    assert!(matches!(runner.hear(), Reply::Began { .. }));
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    let Ending::Lost(why) = &outcome.ending else {
        panic!("{outcome:?}")
    };
    assert!(why.contains("cannot keep the files of the run: "), "{why}");
    std::fs::remove_file(&in_the_way).unwrap();
    runner.ask(&files);
    runner.start("r", "a", &["./hello.sh"]);
    assert!(matches!(runner.hear(), Reply::Began { .. }));
    let Reply::Ended { outcome, .. } = runner.hear() else {
        panic!("no end")
    };
    assert_eq!(outcome.ending, Ending::Exited(0), "{outcome:?}");
}
