"""Plays the host against a built extension module and tests what it promises, process by process.

    APSCLI_PYTHON_EXTENSION=target/release/libapscli_python.so python3 src/python/tests/drive.py [unittest options]
    APSCLI_PYTHON_EXTENSION=... python3 src/python/tests/drive.py bench

The interpreter that is tested is the one that runs this file, or the one named by APSCLI_PYTHON.
Needs nothing but the standard library.
"""

import contextlib
import errno
import fcntl
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
BOOTSTRAP = open(os.path.join(HERE, os.pardir, "bootstrap.py")).read()
EXTENSION = os.path.abspath(os.environ.get("APSCLI_PYTHON_EXTENSION", ""))
PYTHON = os.environ.get("APSCLI_PYTHON", sys.executable)
MIB = 1 << 20

# A setting like PYTHONUNBUFFERED would make some tests pass that should not.
for name in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[name]

USER = {
    "user.py": '''
import functools, os, random, sys, time
state = []
def zero(): return 0
def one(): return 1
def two(): return 2
def yes(): return True
def no(): return False
def none(): return None
def text(): return "0"
async def later(): return 0
def given(value): return value
def echo(**kw): return {"return_code": 0, "output": kw}
def everything(): return {"return_code": 3, "output": [1, "\\ud800", "\\u00fc"], "info": {"a": None}, "err_msg": "m", "err_code": 7}
def extra(): return {"return_code": 0, "outptu": 1, 5: 2}
def add(vm_id, vm_name="x", *, size=1): return {"return_code": 0, "output": [vm_id, vm_name, size]}
def bad_ip(): raise ValueError("bad ip")
def type_error(): return len(5)
def lines(): raise ValueError("first\\nsecond")
class Own(Exception): pass
def own(): raise Own()
def surrogate(): raise ValueError("a\\udc80b")
class Mute(Exception):
    def __str__(self): raise RuntimeError
def mute(): raise Mute()
def long_message(): raise ValueError("x" * 30000000)
def leave(): sys.exit(5)
def interrupted(): raise KeyboardInterrupt
def recurse(): return recurse()
def segfault():
    import ctypes
    ctypes.string_at(0)
def hard_exit(): os._exit(9)
def leak():
    state.append(1); os.environ["LEAK"] = "1"; sys.path.append("/leak"); sys.leak = 1
    return {"return_code": 0, "output": len(state)}
def look(): return {"return_code": 0, "output": [len(state), os.environ.get("LEAK"), "/leak" in sys.path, hasattr(sys, "leak"), os.getpid()]}
def draw(): return {"return_code": 0, "output": random.random()}
def big(size): return {"return_code": 0, "output": "x" * size}
def size(data): return {"return_code": 0, "output": len(data)}
def deep(depth):
    value = []
    for _ in range(depth - 1): value = [value]
    return {"return_code": 0, "output": value}
def circle():
    value = []; value.append(value)
    return {"return_code": 0, "output": value}
def nan(): return {"return_code": 0, "output": float("nan")}
def thing(): return {"return_code": 0, "info": object()}
def huge_code(): return {"return_code": 1 << 70}
def bool_code(): return {"return_code": True}
def no_code(): return {"output": 1}
def nap(seconds=1000): time.sleep(seconds); return 0
def gate(path):
    open(path).read(); return 0
def show():
    print("one"); print("two \\udcff \\ud800 \\u00fc"); sys.stderr.write("three\\n"); time.sleep(1000)
def partial(): sys.stdout.write("no newline"); return 0
def c_print():
    import ctypes
    ctypes.CDLL(None).printf(b"from C\\n"); return 0
def fds():
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try: names.append([int(fd), os.readlink("/proc/self/fd/" + fd)])
        except OSError: pass
    return {"return_code": 0, "output": names}
def place():
    return {"return_code": 0, "output": {
        "cwd": os.getcwd(), "path": sys.path, "pid": os.getpid(), "pgid": os.getpgid(0), "ppid": os.getppid(),
        "nofile": __import__("resource").getrlimit(__import__("resource").RLIMIT_NOFILE),
        "tz": time.strftime("%H", time.localtime(0)), "argv": sys.argv, "env": os.environ.get("GREETING"),
        "stdin": sys.stdin.read(), "loaded": sorted(sys.modules)}}
def signals():
    import signal
    return {"return_code": 0, "output": [
        signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))]}
def at_end(folder):
    import atexit, threading
    atexit.register(lambda: open(folder + "/atexit", "w").close())
    def slow():
        time.sleep(0.5); open(folder + "/thread", "w").close()
    threading.Thread(target=slow).start()
    return 0
def forks():
    if os.fork() == 0:
        time.sleep(3)
    return {"return_code": 0, "output": os.getpid()}
def leaves():
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
    return {"return_code": 0, "output": pid}
def descendant():
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
    print(os.getpid(), pid); time.sleep(1000)
class Box:
    @staticmethod
    def method(x): return {"return_code": 0, "output": x}
number = 5
def wrap(function):
    @functools.wraps(function)
    def wrapper(**kw): return function("connection", **kw)
    return wrapper
@wrap
def wrapped(connection, ip): return {"return_code": 0, "output": [connection, ip]}
builtin = len
''',
    "raises_at_import.py": "x = 1\nraise RuntimeError('no licence')\n",
    "says_it_is_missing.py": "raise ModuleNotFoundError('I am not here', name='says_it_is_missing')\n",
    "imports_missing.py": "import there_is_no_such_thing\n",
    "broken.py": "def f(:\n",
    "exits.py": "import sys; sys.exit(4)\n",
    "inspect.py": "def f(): return {'return_code': 0, 'output': 'mine'}\n",
    "pkg/__init__.py": "",
    "pkg/inner.py": "def f(): return 0\n",
    "plain.py": "def zero(): return 0\n",
    "warm.py": "import os\nloaded_by = os.getpid()\nprint('hello from preload')\ndef who(): return {'return_code': 0, 'output': loaded_by}\n",
}


class Call:
    def __init__(self, number):
        self.id, self.result, self.stdout = number, bytearray(), bytearray()
        self.pid = self.ended = self.refused = self.forked_at = self.ended_at = None
        self.open = 0
        self.err = tempfile.TemporaryFile()

    @property
    def stderr(self):
        self.err.seek(0)
        return self.err.read().decode()

    @property
    def document(self):
        return json.loads(self.result)

    @property
    def done(self):
        return (self.ended is not None and not self.open) or self.refused is not None


class Host:
    """The other end of the conversation, without threads."""

    def __init__(self, *preload, python=PYTHON, **popen):
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [python, "-c", BOOTSTRAP, EXTENSION, str(other.fileno()), *preload],
            pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True, **popen)
        other.close()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.socket, selectors.EVENT_READ, self.hear)
        self.calls, self.ready, self.gone, self.messages = {}, None, False, []
        self.says_over = True

    def __enter__(self):
        self.pump(lambda: self.ready or self.gone)
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(self.socket)
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        self.status = self.process.wait(10)
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            os.close(key.fileobj)
        self.parent_said = self.parent_log()
        self.log.close()
        for call in self.calls.values():
            call.err.close()

    def hear(self, _fd):
        while True:
            try:
                packet = self.socket.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                self.gone = True
                self.selector.unregister(self.socket)
                return
            message = json.loads(packet)
            self.messages.append(message)
            (kind, body), = message.items()
            if kind == "ready":
                self.ready = body
                continue
            call = self.calls[body["call"]]
            if kind == "forked":
                assert call.pid is None and call.ended is None
                call.pid, call.forked_at = body["pid"], time.perf_counter()
            elif kind == "refused":
                call.refused = body["error"]
            else:
                assert kind == "ended" and call.pid and call.ended is None, message
                call.ended, call.ended_at = body, time.perf_counter()
                if self.says_over:
                    self.over(call)

    def over(self, call):
        try:
            self.socket.send(json.dumps({"over": call.id}).encode())
        except (BlockingIOError, BrokenPipeError):
            pass  # full, or gone: then it stays unreaped

    def pump(self, until, timeout=60):
        end = time.monotonic() + timeout
        while not until():
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError("nothing came within %s s; stderr: %s" % (timeout, self.parent_log()))
            for key, _ in self.selector.select(left):
                key.data(key.fileobj)

    def parent_log(self):
        self.log.seek(0)
        return self.log.read().decode()

    def start(self, module, function, raw=None, fds=4, **request):
        call = Call(len(self.calls) + 1)
        self.calls[call.id] = call
        if raw is None:
            request = {"module": module, "function": function, "path": [FOLDER], "env": {}, "param": {}, "cwd": None, **request}
            raw = json.dumps(request).encode()
        request_r, request_w = os.pipe()
        result_r, result_w = os.pipe()
        stdout_r, stdout_w = os.pipe()
        theirs = [request_r, result_w, stdout_w, call.err.fileno()]
        flags = fcntl.fcntl(call.err, fcntl.F_GETFL)
        fcntl.fcntl(call.err, fcntl.F_SETFL, flags | os.O_APPEND)
        while True:
            try:
                socket.send_fds(self.socket, [json.dumps({"call": call.id}).encode()], theirs[:fds])
                break
            except OSError as error:
                # Full, or more descriptors on their way than one user may have (ETOOMANYREFS).
                assert error.errno in (errno.EAGAIN, errno.ETOOMANYREFS), error
                self.pump(self.once(), 10)
        for fd in theirs[:3]:
            os.close(fd)
        for fd in (request_w, result_r, stdout_r):
            os.set_blocking(fd, False)
        left = memoryview(raw)

        def close(fd):
            self.selector.unregister(fd)
            os.close(fd)

        def feed(fd):
            nonlocal left
            try:
                left = left[os.write(fd, left):]
            except BlockingIOError:
                return
            except BrokenPipeError:
                left = left[:0]
            if not left:
                close(fd)

        def drain(into):
            def take(fd):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        data = os.read(fd, MIB)
                        if not data:
                            call.open -= 1
                            return close(fd)
                        into.extend(data)
            return take

        call.open = 2
        self.selector.register(request_w, selectors.EVENT_WRITE, feed)
        self.selector.register(result_r, selectors.EVENT_READ, drain(call.result))
        self.selector.register(stdout_r, selectors.EVENT_READ, drain(call.stdout))
        return call

    @staticmethod
    def once():
        turns = iter([False, True])
        return lambda: next(turns, True)

    def call(self, function, module="user", **request):
        call = self.start(module, function, **request)
        self.pump(lambda: call.done)
        return call


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(test, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if test():
            return True
        time.sleep(0.01)
    return False


class Served(unittest.TestCase):
    """Calls to one interpreter that lives through all of them."""

    @classmethod
    def setUpClass(cls):
        cls.host = Host().__enter__()
        assert cls.host.ready, cls.host.parent_log()

    @classmethod
    def tearDownClass(cls):
        assert cls.host.process.poll() is None, "the parent did not live through the calls"
        cls.host.close()
        assert (cls.host.status, cls.host.parent_said) == (0, ""), (cls.host.status, cls.host.parent_said)

    def returned(self, function, **request):
        call = self.host.call(function, **request)
        self.assertEqual(call.ended, {"call": call.id, "exit_code": 0}, call.stderr)
        self.assertIn("returned", call.document, call.stderr)
        return call.document["returned"]

    def exception(self, kind, function, *words, **request):
        call = self.host.call(function, **request)
        self.assertEqual(call.ended, {"call": call.id, "exit_code": 0}, call.stderr)
        body = call.document["exception"]
        self.assertEqual(sorted(body), ["err_code", "err_msg", "kind"])
        self.assertEqual((body["kind"], body["err_code"]), (kind, "apscli_run_py_func_exception"), body)
        for word in words:
            self.assertIn(word, body["err_msg"])
        self.assertTrue(call.stderr)
        return call, body["err_msg"]

    def test_ready(self):
        ready = self.host.ready
        version = subprocess.check_output([PYTHON, "-c", "import platform; print(platform.python_version())"], text=True)
        self.assertEqual(ready["version"], version.strip())
        self.assertEqual(ready["protocol"], 2)
        self.assertTrue(os.access(ready["executable"], os.X_OK))

    # What a function may return

    def test_int_results(self):
        self.assertEqual(self.returned("zero"), {"return_code": 0})
        self.assertEqual(self.returned("one"), {"return_code": 1})

    def test_dict_results(self):
        self.assertEqual(self.returned("everything"), {
            "return_code": 3, "output": [1, "\ud800", "\u00fc"], "info": {"a": None}, "err_msg": "m", "err_code": 7})
        self.assertEqual(self.returned("given", param={"value": {"return_code": -1}}), {"return_code": -1})

    def test_unknown_keys_are_left_out_and_told(self):
        call = self.host.call("extra")
        self.assertEqual(call.document, {"returned": {"return_code": 0}})
        self.assertIn("'outptu', 5", call.stderr)

    def test_bad_results(self):
        for function, word in [("yes", "True"), ("no", "False"), ("two", "2"), ("none", "None"), ("text", "str"), ("later", "coroutine"),
                               ("huge_code", "64 bits"), ("bool_code", "True"), ("no_code", "without `return_code`")]:
            with self.subTest(function):
                self.exception("bad_return", function, "user." + function, word, "expected 0, 1 or a dict")

    def test_results_that_are_no_json(self):
        self.exception("bad_return", "nan", "`output`", "not JSON compliant")
        self.exception("bad_return", "thing", "`info`", "object")
        self.exception("bad_return", "circle", "`output`", "ircular")

    def test_deep_results(self):
        self.returned("deep", param={"depth": 125})  # and two levels of the document
        self.exception("bad_return", "deep", "128", "127", param={"depth": 126})
        self.exception("bad_return", "deep", param={"depth": 300})
        self.exception("bad_return", "deep", param={"depth": 200000})

    def test_big_results(self):
        self.assertEqual(len(self.returned("big", param={"size": 10 * MIB})["output"]), 10 * MIB)
        edge = 16 * MIB - len('{"returned":{"return_code":0,"output":""}}')
        self.assertEqual(len(self.returned("big", param={"size": edge})["output"]), edge)
        self.exception("too_large", "big", str(16 * MIB + 1), str(16 * MIB), param={"size": edge + 1})

    # What can go wrong before it runs

    def test_missing_module(self):
        for name in ["nowhere", "nowhere.inner", "pkg.nowhere", "user.nowhere"]:
            with self.subTest(name):
                self.exception("not_found", "f", "`%s`" % name, FOLDER, module=name)
        for name in ["", ".user", "a\0b", "x" * 300, "user ", "../user"]:
            with self.subTest(name):
                self.exception("not_found", "f", module=name)

    def test_missing_function(self):
        self.exception("not_found", "nowhere", "`user`", "`nowhere`", "user.py", "bad_ip")
        self.exception("not_found", "Box.nowhere", "`Box.nowhere`")
        self.exception("not_found", "number", "no function", "int")
        self.exception("not_found", "")

    def test_module_that_does_not_import(self):
        call, message = self.exception("import", "f", module="raises_at_import")
        self.assertEqual(message, "RuntimeError: no licence")
        self.assertIn("raises_at_import.py", call.stderr)
        self.assertNotIn("importlib", call.stderr)
        _, message = self.exception("import", "f", module="imports_missing")
        self.assertEqual(message, "ModuleNotFoundError: No module named 'there_is_no_such_thing'")
        self.exception("import", "f", "ModuleNotFoundError: I am not here", module="says_it_is_missing")
        self.exception("import", "f", "SyntaxError", "broken.py", module="broken")
        self.exception("import", "f", "SystemExit: 4", module="exits")

    def test_wrong_parameters(self):
        for param, words in [({}, ["nothing", "missing", "vm_id"]), ({"vm_id": 1, "foo": 2}, ["vm_id, foo", "unexpected", "'foo'"])]:
            self.exception("signature", "add", "`user.add`", "(vm_id, vm_name='x', *, size=1)", *words, param=param)
        self.assertEqual(self.returned("add", param={"vm_id": 1, "size": 3})["output"], [1, "x", 3])

    def test_decorator_that_adds_a_parameter(self):
        self.assertEqual(self.returned("wrapped", param={"ip": "10.0.0.1"})["output"], ["connection", "10.0.0.1"])

    def test_dotted_names(self):
        self.assertEqual(self.returned("f", module="pkg.inner"), {"return_code": 0})
        self.assertEqual(self.returned("Box.method", param={"x": [1]})["output"], [1])

    def test_own_module_comes_before_one_of_the_standard_library(self):
        self.assertEqual(self.returned("f", module="inspect")["output"], "mine")

    # What can go wrong while it runs

    def test_exceptions(self):
        for function, line in [("bad_ip", "ValueError: bad ip"), ("own", "user.Own"), ("leave", "SystemExit: 5"),
                               ("interrupted", "KeyboardInterrupt"), ("lines", "ValueError: first\nsecond"),
                               ("surrogate", "ValueError: a\udc80b"), ("mute", "user.Mute: <exception str() failed>")]:
            with self.subTest(function):
                call, message = self.exception("raised", function)
                self.assertEqual(message, line)
                self.assertTrue(call.stderr.startswith("Traceback (most recent call last):\n  File \"%s/user.py\", line " % FOLDER), call.stderr)
        _, message = self.exception("raised", "type_error")
        self.assertIn("TypeError", message)
        self.exception("raised", "recurse", "RecursionError")
        _, message = self.exception("raised", "long_message")
        self.assertEqual(len(message), 64 << 10)

    def test_crashes_cost_one_call(self):
        for function, end in [("segfault", {"signal": 11}), ("hard_exit", {"exit_code": 9})]:
            call = self.host.call(function)
            self.assertEqual(call.ended, {"call": call.id, **end})
            self.assertEqual(call.result, b"")
        self.returned("zero")

    def test_killed_from_outside(self):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
            call = self.host.start("user", "nap")
            self.host.pump(lambda: call.pid)
            os.kill(call.pid, number)  # at once: the child may not have come to itself
            self.host.pump(lambda: call.done)
            self.assertEqual(call.ended, {"call": call.id, "signal": int(number)})

    def test_interrupted(self):
        call = self.host.start("user", "show")
        self.host.pump(lambda: b"two" in call.stdout)
        os.kill(call.pid, signal.SIGINT)
        self.host.pump(lambda: call.done)
        self.assertEqual(call.document["exception"]["err_msg"], "KeyboardInterrupt")

    # Requests

    def test_big_request(self):
        self.assertEqual(self.returned("size", param={"data": "x" * 10 * MIB})["output"], 10 * MIB)

    def test_bad_requests(self):
        good = {"module": "user", "function": "zero", "path": [FOLDER]}
        for raw, word in [(b"", "JSON"), (b"{", "JSON"), (b"\xff\xfe", "JSON"), (b"[]", "dict"), (b"{}", "module"),
                          (json.dumps({**good, "path": "x"}).encode(), "list"),
                          (json.dumps({**good, "param": [1]}).encode(), "dict"),
                          (json.dumps({**good, "module": 5}).encode(), "str"),
                          (json.dumps({**good, "cwd": "/nowhere"}).encode(), "/nowhere"),
                          (json.dumps({**good, "env": {"A": 5}}).encode(), "str"),
                          (json.dumps({**good, "env": {"A": "\0"}}).encode(), "null"),
                          (b"[" * 100000, "nested 100000 deep"),
                          (b'{"param":' * 200 + b"1" + b"}" * 200, "nested 200 deep")]:
            with self.subTest(raw[:60]):
                self.exception("request", "", word, raw=raw)

    def test_request_depth(self):
        def nested(depth):
            return json.dumps({"module": "user", "function": "zero", "path": [FOLDER], "param": {}, "more": 0}).replace(
                '"more": 0', '"more": ' + "[" * depth + "]" * depth).encode()
        self.returned("zero", raw=nested(127))
        self.exception("request", "zero", "nested 129 deep", raw=nested(128))

    def test_request_that_is_too_big(self):
        self.exception("request", "", str(64 * MIB), raw=b" " * (64 * MIB + 1))

    def test_parameters_arrive_as_sent(self):
        param = {"a": [1, 2.5, None, True, {"b": "\ud800\u00fc\u4e2d"}], "not an identifier": "}], \"x\": \"", "self": 1}
        self.assertEqual(self.returned("echo", param=param)["output"], param)

    # The process of a call

    def test_place(self):
        with tempfile.TemporaryDirectory() as folder:
            call = self.host.call("place", path=[FOLDER, "/second"], cwd=folder, env={"GREETING": "h\u00fc", "TZ": "XXX-5"})
            place = call.document["returned"]["output"]
            self.assertEqual(place["cwd"], os.path.realpath(folder))
        self.assertEqual(place["path"][:2], [FOLDER, "/second"])
        self.assertNotIn("", place["path"])
        self.assertEqual((place["pid"], place["pgid"]), (call.pid, call.pid))
        self.assertEqual(place["ppid"], self.host.process.pid)
        self.assertEqual(place["env"], "h\u00fc")
        self.assertEqual(place["tz"], "05")
        self.assertEqual(place["argv"], [""])
        self.assertEqual(place["stdin"], "")
        self.assertEqual(tuple(place["nofile"]), resource.getrlimit(resource.RLIMIT_NOFILE))
        self.assertLessEqual({"json", "importlib", "traceback", "inspect", "threading", "atexit"}, set(place["loaded"]))

    def test_nothing_of_the_parent_stays_open(self):
        others = [self.host.start("user", "nap") for _ in range(5)]
        self.host.pump(lambda: all(call.pid for call in others))
        names = dict(self.returned("fds")["output"])
        for call in others:
            os.kill(call.pid, signal.SIGKILL)
        self.host.pump(lambda: all(call.done for call in others))
        self.assertEqual(names.pop(0), "/dev/null")
        # stdout, stderr and the result; the folder that is being listed is closed by the time of readlink.
        self.assertEqual(sorted(name.split(":")[0].split("/")[-2:][0] for name in names.values() if not name.startswith("/proc")), ["pipe", "pipe", "tmp"])

    def test_signals_are_as_python_starts_with(self):
        self.assertEqual(self.returned("signals")["output"], [True, True, True, []])

    def test_no_state_leaks(self):
        self.assertEqual(self.returned("leak")["output"], 1)
        self.assertEqual(self.returned("leak")["output"], 1)
        first, second = self.returned("look")["output"], self.returned("look")["output"]
        self.assertEqual(first[:4], [0, None, False, False])
        self.assertNotEqual(first[4], second[4])

    def test_random_numbers_differ(self):
        self.assertEqual(len({self.returned("draw")["output"] for _ in range(5)}), 5)

    def test_prints_are_live_and_never_fail(self):
        call = self.host.start("user", "show")
        self.host.pump(lambda: call.stdout.count(b"\n") == 2 and call.stderr.endswith("\n"), 10)
        self.assertEqual(call.stdout.decode(), "one\ntwo \\udcff \\ud800 \u00fc\n")
        self.assertEqual(call.stderr, "three\n")
        self.assertIsNone(call.ended)
        os.kill(call.pid, signal.SIGKILL)
        self.host.pump(lambda: call.done)

    def test_what_is_left_in_buffers_comes_out(self):
        self.assertEqual(self.host.call("partial").stdout, b"no newline")
        self.assertEqual(self.host.call("c_print").stdout, b"from C\n")

    def test_threads_and_exit_functions_run_after_the_result(self):
        with tempfile.TemporaryDirectory() as folder:
            call = self.host.start("user", "at_end", param={"folder": folder})
            self.host.pump(lambda: call.result)
            self.assertEqual(os.listdir(folder), [])
            self.assertIsNone(call.ended)
            self.host.pump(lambda: call.done)
            self.assertEqual(sorted(os.listdir(folder)), ["atexit", "thread"])

    def test_process_forked_by_the_function_does_not_hold_or_spoil_the_result(self):
        start = time.monotonic()
        call = self.host.start("user", "forks")
        self.host.pump(lambda: call.ended and call.open == 1)
        self.assertLess(time.monotonic() - start, 2)
        self.assertEqual(call.document["returned"]["output"], call.pid)
        self.host.pump(lambda: call.done)  # the fork holds stdout, as the fork of any program does
        self.assertEqual(call.document["returned"]["output"], call.pid)

    # The conversation

    def test_wrong_number_of_descriptors_is_refused(self):
        for number in (1, 3):
            call = self.host.start("user", "zero", fds=number)
            self.host.pump(lambda: call.refused)
            self.assertIn("%d of the call's 4" % number, call.refused)
        self.returned("zero")

    def test_stray_signals_do_not_end_the_parent(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(self.host.process.pid, number)
        self.returned("zero")

    def test_stopped_and_continued(self):
        os.kill(self.host.process.pid, signal.SIGSTOP)
        call = self.host.start("user", "zero")
        os.kill(self.host.process.pid, signal.SIGCONT)
        self.host.pump(lambda: call.done)

    def test_parent_keeps_nothing_of_a_call(self):
        def descriptors():
            return len(os.listdir("/proc/%d/fd" % self.host.process.pid))
        self.returned("zero")
        before = descriptors()
        for _ in range(50):
            self.returned("zero")
        self.assertEqual(descriptors(), before)


class Many(unittest.TestCase):
    def test_a_thousand_at_once(self):
        with Host() as host, tempfile.TemporaryDirectory() as folder:
            gate = os.path.join(folder, "gate")
            os.mkfifo(gate)
            calls = [host.start("user", "gate", param={"path": gate}) for _ in range(1000)]
            host.pump(lambda: all(call.pid for call in calls), 120)
            self.assertEqual(sum(alive(call.pid) for call in calls), 1000)
            self.assertFalse(any(call.ended for call in calls))
            # Opened for both, it lets all readers through without ever having none; then it is closed.
            opener = os.open(gate, os.O_RDWR)
            time.sleep(2)
            os.close(opener)
            host.pump(lambda: all(call.done for call in calls), 240)
            self.assertEqual({call.result.decode() for call in calls}, {'{"returned":{"return_code":0}}'})
            self.assertEqual(len({call.pid for call in calls}), 1000)
            self.assertEqual({tuple(call.ended) for call in calls}, {("call", "exit_code")})

    def test_flood_of_short_calls(self):
        with Host() as host:
            calls = [host.start("user", "draw") for _ in range(2000)]
            host.pump(lambda: all(call.done for call in calls), 240)
            self.assertEqual(len({call.document["returned"]["output"] for call in calls}), 2000)

    def test_host_that_does_not_read(self):
        """More messages than the socket holds: all of them come, in order, when the host reads again."""
        with Host() as host:
            host.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host.selector.unregister(host.socket)
            calls = []
            for _ in range(600):
                calls.append(host.start("user", "zero"))
                host.pump(lambda: calls[-1].open == 0, 30)  # ended, but nobody has heard
            host.selector.register(host.socket, selectors.EVENT_READ, host.hear)
            host.pump(lambda: all(call.done for call in calls), 60)
            self.assertEqual([list(m)[0] for m in host.messages].count("ended"), 600)

    def test_low_limit_of_open_files(self):
        """The soft limit is raised for the parent; where the hard one is low too, what is too much is refused."""
        with Host(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))) as host:
            calls = [host.start("user", "nap", param={"seconds": 1}) for _ in range(200)]
            host.pump(lambda: all(call.done for call in calls), 60)
            self.assertTrue(all(call.ended for call in calls))
            self.assertEqual(host.call("place").document["returned"]["output"]["nofile"], [64, 4096])
        with Host(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))) as host:
            calls = [host.start("user", "nap", param={"seconds": 3}) for _ in range(100)]
            host.pump(lambda: all(call.done for call in calls), 60)
            refused = [call for call in calls if call.refused]
            self.assertTrue(refused and len(refused) < 100)
            self.assertIn("too many open files", refused[0].refused)
            self.assertEqual(host.call("zero").document, {"returned": {"return_code": 0}})

    def test_fork_that_fails_is_refused(self):
        if os.getuid() != 0:
            self.skipTest("needs another user's process limit")

        def limit():
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        with tempfile.TemporaryDirectory() as folder:
            # The unprivileged user must be able to read what it runs.
            os.chmod(folder, 0o755)
            copy = shutil.copy(EXTENSION, folder)

            def readable(python):
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    done = subprocess.run([python, "-c", "import json; open(%r)" % copy], preexec_fn=limit, stderr=subprocess.DEVNULL)
                    return done.returncode == 0
            python = next(filter(readable, [PYTHON, "/usr/bin/python3"]), None)
            if python is None:
                self.skipTest("there is no python that another user can run")
            with mock.patch.dict(globals(), EXTENSION=copy), Host(python=python, preexec_fn=limit) as host:
                call = host.start("user", "zero")
                host.pump(lambda: call.done)
                self.assertIn("Resource temporarily unavailable", call.refused)


class Over(unittest.TestCase):
    """A number stays that of its call's process as long as the host may signal it."""

    def test_an_ended_process_is_kept_until_the_host_is_done(self):
        with Host() as host:
            host.says_over = False
            call = host.call("zero")
            host.call("zero")  # many turns of the parent later
            self.assertFalse(alive(call.pid))
            os.kill(call.pid, 0)
            os.killpg(call.pid, 0)
            host.over(call)
            self.assertTrue(eventually(lambda: not os.path.exists("/proc/%d" % call.pid)), "it is never reaped")

    def test_a_host_that_is_done_before_the_end(self):
        with Host() as host:
            host.says_over = False
            call = host.start("user", "nap")
            host.pump(lambda: call.pid)
            host.over(call)
            self.assertEqual(host.call("zero").document, {"returned": {"return_code": 0}})
            self.assertTrue(alive(call.pid))
            os.kill(call.pid, signal.SIGKILL)
            host.pump(lambda: call.done)
            self.assertTrue(eventually(lambda: not os.path.exists("/proc/%d" % call.pid)), "it is never reaped")
            host.over(call)  # nobody's any more
            self.assertEqual(host.call("zero").document, {"returned": {"return_code": 0}})

    def test_what_an_ended_call_left_behind_stays_when_the_host_goes(self):
        with Host() as host:
            host.says_over = False
            call = host.start("user", "leaves")
            host.pump(lambda: call.ended)
            left = call.document["returned"]["output"]
            host.close()
            try:
                self.assertTrue(alive(left))
            finally:
                os.kill(left, signal.SIGKILL)

    def test_a_number_that_is_taken_is_refused(self):
        with Host() as host, open(os.devnull) as null:
            call = host.start("user", "nap")
            host.pump(lambda: call.pid)
            socket.send_fds(host.socket, [json.dumps({"call": call.id}).encode()], [null.fileno()] * 4)
            host.pump(lambda: call.refused)
            self.assertIn("taken", call.refused)
            os.kill(call.pid, signal.SIGKILL)
            host.pump(lambda: call.ended)


class Ends(unittest.TestCase):
    def pids(self, host):
        call = host.start("user", "descendant")
        found = []

        def said():
            found[:] = map(int, call.stdout.split())
            return call.stdout.endswith(b"\n")
        host.pump(said)
        return found

    def test_host_gone(self):
        with Host() as host:
            pids = self.pids(host)
            self.assertTrue(all(map(alive, pids)))
            host.close()
            self.assertEqual(host.status, 0)
            self.assertTrue(eventually(lambda: not any(map(alive, pids))), "children or their children live on")

    def test_host_gone_with_the_parent_flooded(self):
        host = Host().__enter__()
        for _ in range(50):
            host.start("user", "nap")
        host.close()
        self.assertEqual(host.status, 0)
        # Nobody lives whose parent it was: each call that was forked is in the group of its own pid.
        self.assertTrue(eventually(lambda: not session_members(host.process.pid)))

    def test_parent_killed(self):
        with Host() as host:
            child, _grandchild = pids = self.pids(host)
            try:
                host.process.kill()
                self.assertTrue(eventually(lambda: not alive(child)), "the child outlives its parent")
            finally:
                os.kill(pids[1], signal.SIGKILL)

    def test_protocol_violation(self):
        for packet in (b"nonsense", b"{}", b'{"call":-1}', b'{"call":1' + b" " * 5000 + b"}"):
            with self.subTest(packet[:20]), Host() as host:
                nap = host.start("user", "nap")
                host.pump(lambda: nap.pid)
                host.socket.send(packet)
                host.pump(lambda: host.gone)
                self.assertEqual(host.process.wait(10), 3)
                self.assertTrue(eventually(lambda: not alive(nap.pid)))
                log = host.parent_log()
                self.assertEqual((log.count("\n"), "from the host" in log), (1, True), log)


def session_members(session):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getsid(int(name)) == session and alive(int(name)):
                found.append(int(name))
    return found


class Start(unittest.TestCase):
    def fails(self, *words, python=PYTHON, extension=None, preload=(), **popen):
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, other:
            done = subprocess.run(
                [python, "-c", BOOTSTRAP, extension or EXTENSION, str(other.fileno()), *preload],
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, capture_output=True, text=True, **popen)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_no_such_extension(self):
        self.fails("cannot load", "/nowhere.so", extension="/nowhere.so")

    def test_not_an_extension(self):
        self.fails("cannot load", "bootstrap.py", extension=os.path.join(HERE, os.pardir, "bootstrap.py"))

    def test_missing_preload(self):
        self.fails("cannot serve", "nowhere_to_be_found", preload=["nowhere_to_be_found"])
        self.fails("cannot serve", "SystemExit", preload=["exits"], env={**os.environ, "PYTHONPATH": FOLDER})

    def test_old_pythons(self):
        old = [path for path in os.environ.get("APSCLI_OLD_PYTHONS", "").split(":") if path]
        if not old:
            self.skipTest("APSCLI_OLD_PYTHONS names none")
        for python in old:
            with self.subTest(python):
                self.fails("too old", "3.9", python=python)

    def test_wrong_descriptor(self):
        done = subprocess.run([PYTHON, "-c", BOOTSTRAP, EXTENSION, "77"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (3, 1), done.stderr)

    def test_preload(self):
        with Host("warm", env={**os.environ, "PYTHONPATH": FOLDER}) as host:
            self.assertTrue(host.ready, host.parent_log())
            call = host.call("who", module="warm")
            self.assertEqual(call.document["returned"]["output"], host.process.pid)
            self.assertEqual(call.stdout, b"")
            self.assertEqual(host.parent_log(), "hello from preload\n")
        with Host(env={**os.environ, "PYTHONPATH": FOLDER}) as host:
            call = host.call("who", module="warm")
            self.assertEqual(call.document["returned"]["output"], call.pid)

    def test_folder_it_is_started_in_is_not_searched(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("json", "inspect", "importlib", "os"):
                with open(os.path.join(folder, name + ".py"), "w") as file:
                    file.write("raise SystemExit('wrong module')\n")
            with Host(cwd=folder) as host:
                self.assertTrue(host.ready, host.parent_log())
                self.assertEqual(host.call("zero").document, {"returned": {"return_code": 0}})

    def test_ignored_and_blocked_signals_are_put_right(self):
        def odd():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with Host(preexec_fn=odd) as host:
            self.assertEqual(host.call("signals").document["returned"]["output"], [True, True, True, []])
            call = host.call("hard_exit")
            self.assertEqual(call.ended, {"call": call.id, "exit_code": 9})


def bench():
    """One line of JSON: a call after another, each against a bare fork of an interpreter as warm.

    The wall time of a call has this driver's own work in it; the CPU time has not: it is that of the interpreter
    and its children, in the kernel too, and so the fairer ratio on a machine that others use.
    """
    bare = """
import json, importlib, traceback, inspect, threading, atexit, os, signal, time, gc
gc.collect(); gc.freeze()
def once():
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)
    return time.perf_counter() - start
for _ in range(50): once()
before = sum(os.times()[:4])
times = [once() for _ in range(1000)]
print(json.dumps([times, (sum(os.times()[:4]) - before) / 1000]))
"""
    def run_bare():
        times, cpu = json.loads(subprocess.check_output([PYTHON, "-c", bare]))
        return {**figures(times), "cpu_ms": round(1e3 * cpu, 3)}

    def cpu(host):
        with open("/proc/%d/stat" % host.process.pid) as stat:
            return sum(map(int, stat.read().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")

    def figures(times):
        times = sorted(times)
        return {"median_ms": round(1e3 * statistics.median(times), 3), "p90_ms": round(1e3 * times[len(times) * 9 // 10], 3)}

    def measure(host, number=1000, **request):
        times = []
        cpu_before = cpu(host)
        for _ in range(number):
            start = time.perf_counter()
            call = host.call("zero", module="plain", **request)
            times.append(time.perf_counter() - start)
            assert call.document == {"returned": {"return_code": 0}}
            call.err.close()
            call.stdout = call.result = b""
        return {**figures(times), "cpu_ms": round(1e3 * (cpu(host) - cpu_before) / number, 3)}

    out = {"python": subprocess.check_output([PYTHON, "-V"], text=True).strip()}
    out["bare"] = run_bare()
    with Host() as host:
        measure(host, 50)
        out["call"] = measure(host)
    with Host("plain", env={**os.environ, "PYTHONPATH": FOLDER}) as host:
        out["call_preloaded"] = measure(host)
    with Host() as host:
        start = time.perf_counter()
        calls = [host.start("plain", "zero") for _ in range(1000)]
        host.pump(lambda: all(call.done for call in calls), 240)
        out["thousand_at_once_ms_each"] = round(time.perf_counter() - start, 3)  # s for 1,000 are ms for each
    with Host() as host:
        idle = [host.start("user", "nap") for _ in range(1000)]
        host.pump(lambda: all(call.pid for call in idle), 120)
        time.sleep(5)
        out["call_beside_1000_alive"] = measure(host, 200)
    out["bare_again"] = run_bare()
    for figure in ("median_ms", "cpu_ms"):
        base = (out["bare"][figure] + out["bare_again"][figure]) / 2
        for what in ("call", "call_preloaded"):
            out[what]["of_bare_" + figure[:-3]] = round(out[what][figure] / base, 2)
    print(json.dumps(out))


if __name__ == "__main__":
    if not os.path.isfile(EXTENSION):
        sys.exit("APSCLI_PYTHON_EXTENSION must name the built extension module")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # The tests look at what calls inherit, so the interpreters get a limit that is not the highest.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    FOLDER = os.path.realpath(tempfile.mkdtemp())
    os.chmod(FOLDER, 0o755)
    try:
        for name, text in USER.items():
            os.makedirs(os.path.dirname(os.path.join(FOLDER, name)), exist_ok=True)
            with open(os.path.join(FOLDER, name), "w") as file:
                file.write(text)
        if sys.argv[1:2] == ["bench"]:
            bench()
        else:
            unittest.main(verbosity=2)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
