"""Who is measured: an engine as a JSON file describes it, and what its process takes.

The file of apscli is `apscli.json` beside this one. Another engine's stands wherever its owner keeps it:

  name        what it is called in the results
  setup       command lines that prepare the cluster, run in the file's folder
  command     the command line of the engine, run in the file's folder; it finds KUBECONFIG
  user        the number of the user (and group) that it runs as; may be missing
  ready       a URL that answers 200 once it works; none: it is given `settle` seconds
  metrics     a URL with its metrics as Prometheus text; may be missing. Of these only counters that are called
              as those of apscli are read
  resource    where runs are created and watched, such as /apis/GROUP/VERSION/namespaces/default/PLURAL
  run         the manifest of a run. "$name" is its name; "$nodes" stands for the list of the nodes,
              or, where `node` has a `$key`, for an object of them. "$parallelism" may stand in it:
              where the shape has none, its member goes
  node        one node: "$node" is its name, "$prev" the list of the names before it
  phase       the path of a run's phase, as in status.phase; a number is a place in a list, as in
              status.conditions.0.status, with True and False in `final`
  final       the phases in which it is over, the good one first
  submit      for runs whose manifest is over 256 KiB: a command line; "$file" is a file with what
              `template` makes of the nodes, "$name" the name
  template    the content of that file

CPU and memory are those of the process that `command` starts; what that starts is not counted, so `command`
should be the engine itself and no wrapper.

Must not measure; `loads.py` does.
"""

import copy
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.request

from shapes import Nodes

LARGE = 256 * 1024
PATIENCE_SECONDS = 60


class Controller:
    """An engine and, once started, its process."""

    def __init__(self, file: pathlib.Path, words: dict[str, str]):
        self._folder = file.resolve().parent
        self.about = _filled(json.loads(file.read_text()), words)
        self.name = self.about["name"]
        self._process: subprocess.Popen | None = None
        self._log = None

    def set_up(self) -> None:
        for command in self.about.get("setup", []):
            subprocess.run(command, cwd=self._folder, check=True, stdout=subprocess.DEVNULL)

    def start(self, log: pathlib.Path) -> None:
        """Returns once it is ready."""
        self._log = log.open("wb")
        user = self.about.get("user")
        self._process = subprocess.Popen(
            self.about["command"],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        if "ready" not in self.about:
            time.sleep(self.about.get("settle", 5))
            return
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _answers(self.about["ready"]):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} did not get ready; see {log}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._log.close()
            self._process = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        """From now on `VmHWM` is the most since now."""
        pathlib.Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def memory_mib(self, which: str) -> float:
        """`VmHWM` is the most there was, `VmRSS` what is now."""
        for line in pathlib.Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(which + ":"):
                return int(line.split()[1]) / 1024
        return 0.0

    def metrics(self) -> str:
        if "metrics" not in self.about:
            return ""
        with urllib.request.urlopen(self.about["metrics"], timeout=10) as answer:
            return answer.read().decode()

    def manifest(self, name: str, nodes: Nodes, parallelism: int | None) -> dict:
        form = self.about["node"]
        made = [(node, _filled(form, {"node": node, "prev": prev})) for node, prev in nodes]
        if "$key" in form:
            keyed: object = {it.pop("$key"): it for _, it in made}
        else:
            keyed = [it for _, it in made]
        words = {"name": name, "nodes": keyed, "parallelism": parallelism}
        return _filled(self.about["run"], words)

    def template(self, nodes: Nodes) -> str:
        """What a large run is submitted as."""
        whole = self.manifest("", nodes, None)
        for step in self.about["template"].split("."):
            whole = whole[step]
        return json.dumps(whole)

    def submit(self, name: str, file: pathlib.Path) -> None:
        command = _filled(self.about["submit"], {"name": name, "file": str(file)})
        subprocess.run(command, cwd=self._folder, check=True, stdout=subprocess.DEVNULL)

    def phase(self, run: dict) -> str:
        """Empty where the run has none yet."""
        found: object = run
        for step in self.about["phase"].split("."):
            if isinstance(found, dict):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal():
                found = found[int(step)] if int(step) < len(found) else None
            else:
                found = None
        return found or ""

    def is_over(self, run: dict) -> bool:
        return self.phase(run) in self.about["final"]

    def is_good(self, run: dict) -> bool:
        return self.phase(run) == self.about["final"][0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _filled(form, words: dict):
    """The form with each text that is "$word" replaced; a member whose word is None goes."""
    if isinstance(form, str):
        if form.startswith("$") and form[1:] in words:
            return copy.copy(words[form[1:]])
        return form
    if isinstance(form, list):
        return [_filled(it, words) for it in form]
    if isinstance(form, dict):
        filled = {key: _filled(it, words) for key, it in form.items()}
        return {key: it for key, it in filled.items() if it is not None}
    return form


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False
