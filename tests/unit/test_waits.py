"""Every wait has a deadline: a lint over the sources of Python and Java, tried here on waits that have none.

What it cannot see, and need not: a lock held for a few instructions (``with``, ``synchronized``), and a Spark job,
which Spark and the watch of its run end.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted((ROOT / "src").rglob("*.py"))
JAVA = sorted((ROOT / "java" / "src" / "main").rglob("*.java"))

ALLOWED = {
    "src/mizzle/spark/jobs.py result": "Spark's job is waited for: it is watched, and ends with an interrupt",
    "src/mizzle/spark/jobs.py get": "the thread of a run's jobs waits for orders of its owner, which ends it",
    "src/mizzle/collectives/ahead.py result": "the body's own waits have deadlines, and it is cancelled first",
    "src/mizzle/spark/ranks/standby.py read": "a standby waits for the resident's end, which closes the pipe",
    "src/mizzle/blocks/bridge.py connect": "bounded by SO_SNDTIMEO: with Python's timeout a full backlog fails at once",
    "src/mizzle/blocks/futex.py acquire": "guards a few instructions",
    "src/mizzle/bench/all_reduce_systems.py wait": "gloo's own, whose deadline was given when its group began",
    "src/mizzle/collectives/exchange.py result": "of `Ahead`, see there",
    "src/mizzle/bench/application.py recv": "either end waits for the other, whose end closes the pipe",
    "src/mizzle/spark/groups.py result": "of an outcome, which is there",
    "src/mizzle/spark/runner.py result": "of an outcome, which is there",
    "java/src/main/java/org/mizzle/bridge/Wire.java select": "a session waits for its worker: either's end closes it",
    "java/src/main/java/org/mizzle/bridge/Reception.java accept": "waits for workers until its bridge closes it",
    "java/src/main/java/org/mizzle/bridge/DriverLink.java ask": "has Spark's own limit, spark.rpc.askTimeout",
    "java/src/main/java/org/mizzle/bridge/Peers.java createUnmanagedClient": "has Spark's own limits, set to 3 s there",
    "java/src/main/java/org/mizzle/bridge/GroupJobs.java runJob": "a group lasts as long as it does; it is watched",
    "java/src/main/java/org/mizzle/bridge/Deadline.java parkNanos": "this is the one place",
    "java/src/main/java/org/mizzle/bridge/Deadline.java timedWait": "this is the one place",
    "java/src/main/java/org/mizzle/bridge/Deadline.java get": "this is the one place",
}
"""File and call, and why it needs no deadline. One that is not met any more is to be taken out."""

_SUBPROCESS = {"run", "call", "check_call", "check_output"}
_OF_OS = {("os", "read"), ("os", "wait"), ("os", "waitpid"), ("signal", "pause"), ("signal", "sigwait")}
_SOCKET = {"recv", "recv_into", "recvmsg", "accept", "sendall", "connect"}
_NO_WAIT = {("select", "poll")}


def waits_in_python(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every call that may wait for ever."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    timed = {id(call) for function in functions if _sets_timeout(function) for call in ast.walk(function)}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = _waits(call, has_timeout=id(call) in timed)
            if name:
                yield call.lineno, name


def _sets_timeout(function: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "settimeout" for node in ast.walk(function))


def _waits(call: ast.Call, *, has_timeout: bool) -> str | None:
    function = call.func
    given = [argument for argument in call.args if not _is_none(argument)]
    named = {keyword.arg for keyword in call.keywords if not _is_none(keyword.value)}
    if isinstance(function, ast.Name):  # concurrent.futures.wait(futures)
        bounded = function.id not in {"wait", "as_completed"} or len(given) > 1 or "timeout" in named
        return None if bounded else function.id
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    return function.attr if _is_endless(owner, function.attr, given, named, has_timeout=has_timeout) else None


def _is_endless(owner: str, name: str, given: list[ast.expr], named: set[str | None], *, has_timeout: bool) -> bool:
    bare = not given and not named & {"timeout", "timeout_s", "seconds"}
    if (owner, name) in _OF_OS or name == "sleep":
        return True
    if (owner, name) in _NO_WAIT or owner[:1].isupper():  # a class: it makes something
        return False
    if owner == "subprocess":
        return name in _SUBPROCESS and "timeout" not in named
    if owner == "select" and name == "select":
        return len(given) < 4
    if name in _SOCKET:
        return not has_timeout
    return bare and name in {"wait", "join", "get", "result", "acquire", "communicate", "poll", "exception"}


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


_COMMENT_OR_TEXT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_ENDLESS = re.compile(
    r"\.(?P<bare>wait|await|join|take|lock|lockInterruptibly|sync|syncUninterruptibly|awaitUninterruptibly|select|accept)"
    r"\(\s*\)"
    r"|(?<![.\w])(?P<own>wait)\(\s*\)"
    r"|\bLockSupport\.(?P<park>park)\("
    r"|\b(?P<always>sleep|invokeAll|invokeAny|awaitResult|awaitReady|fetchBlockSync|uploadBlockSync|sendRpcSync"
    r"|createUnmanagedClient|createClient|runJob)\("
    r"|\bplugin\.(?P<ask>ask)\("
    # Bounded, but not by a Deadline.
    r"|\b(?P<timed>parkNanos|parkUntil|timedWait|awaitTermination|tryAcquire|tryLock)\("
    r"|\b(?P<unit>get|poll|await|offer|join)\([^;]*?TimeUnit\."
    r"|\b(?P<object>wait)\([^)]"
)
_DECLARED = re.compile(r"\b\w*(?:Future|Semaphore)(?:<[\w<>?,.\[\] ]*>)? (\w+)")


def waits_in_java(text: str, declared: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every call that may wait for ever, or not by a Deadline.

    Args:
        text: a source.
        declared: names of futures and semaphores.
    """
    plain = _without_comments(text)
    for found in _ENDLESS.finditer(plain):
        yield plain.count("\n", 0, found.start()) + 1, next(group for group in found.groups() if group)
    names = "|".join(map(re.escape, declared))
    if names:
        for found in re.finditer(rf"\b(?:{names})\s*\.\s*(get|join|acquire)\(\s*\)", plain):
            yield plain.count("\n", 0, found.start()) + 1, found[1]


def declared_in_java(text: str) -> set[str]:
    """Names of futures and semaphores."""
    return set(_DECLARED.findall(_without_comments(text)))


def _without_comments(text: str) -> str:
    return _COMMENT_OR_TEXT.sub(lambda found: "\n" * found[0].count("\n"), text)


def complaints() -> Iterator[tuple[str, int]]:
    """File and call of all waits without a deadline, with their lines."""
    for path in PYTHON:
        for line, name in waits_in_python(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(ROOT)} {name}", line
    texts = {path: path.read_text(encoding="utf-8") for path in JAVA}
    declared = set().union(*map(declared_in_java, texts.values()))
    for path, text in texts.items():
        for line, name in waits_in_java(text, declared):
            yield f"{path.relative_to(ROOT)} {name}", line


def test_every_wait_has_a_deadline() -> None:
    assert JAVA
    found = [f"{what}, line {line}" for what, line in complaints() if what not in ALLOWED]
    assert not found, "\n" + "\n".join(found)


def test_what_is_allowed_is_still_there() -> None:
    met = {what for what, _ in complaints()}
    assert set(ALLOWED) <= met, set(ALLOWED) - met


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("event.wait()", "wait"),
        ("event.wait(None)", "wait"),
        ("event.wait(timeout=None)", "wait"),
        ("thread.join()", "join"),
        ("queue.get()", "get"),
        ("future.result()", "result"),
        ("self._future.result(timeout=None)", "result"),
        ("lock.acquire()", "acquire"),
        ("wait(futures)", "wait"),
        ("connection.recv(1024)", "recv"),
        ("def take(s):\n    s.accept()", "accept"),
        ("s.sendall(b'')", "sendall"),
        ("select.select([s], [], [])", "select"),
        ("poll.poll()", "poll"),
        ("time.sleep(1)", "sleep"),
        ("subprocess.run(['ls'])", "run"),
        ("subprocess.check_output(['ls'], timeout=None)", "check_output"),
        ("process.communicate()", "communicate"),
        ("os.waitpid(7, 0)", "waitpid"),
        ("os.read(pipe, 1)", "read"),
        ("signal.pause()", "pause"),
    ],
)
def test_a_wait_without_a_deadline_is_found_in_python(text: str, name: str) -> None:
    assert [found for _, found in waits_in_python(text)] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "event.wait(deadline.remaining_s())",
        "changed.wait(timeout=1)",
        "thread.join(5)",
        "', '.join(names)",
        "settings.get('a')",
        "queue.get(timeout=1)",
        "TaskContext.get()",
        "future.result(1)",
        "wait([future], 5)",
        "def fill(s):\n    s.settimeout(1)\n    s.recv(1024)",
        "select.select([s], [], [], 0)",
        "poll.poll(1000)",
        "subprocess.run(['ls'], timeout=5)",
        "subprocess.Popen(['ls'])",
    ],
)
def test_what_does_not_wait_for_ever_is_let_pass_in_python(text: str) -> None:
    assert not list(waits_in_python(text))


JAVA_WAITS: list[tuple[str, str]] = [
    ("monitor.wait();", "wait"),
    ("monitor.wait(100);", "wait"),
    ("latch.await();", "await"),
    ("latch.await(1, TimeUnit.SECONDS);", "await"),
    ("thread.join();", "join"),
    ("queue.take();", "take"),
    ("queue.poll(1, TimeUnit.SECONDS);", "poll"),
    ("Future<byte[]> answer = ask(); x();\nanswer.get();", "get"),
    ("CompletableFuture<Outcome> done; order.done.get();", "get"),
    ("answer.get(5, TimeUnit.SECONDS);", "get"),
    ("Semaphore permits; permits.acquire();", "acquire"),
    ("lock.lock();", "lock"),
    ("Thread.sleep(5);", "sleep"),
    ("pool.invokeAll(tasks);", "invokeAll"),
    ("ThreadUtils.awaitResult(future, Duration.Inf());", "awaitResult"),
    ("service.fetchBlockSync(host, port);", "fetchBlockSync"),
    ("service.uploadBlockSync(host, port);", "uploadBlockSync"),
    ("LockSupport.park();", "park"),
    ("LockSupport.parkNanos(5);", "parkNanos"),
    ("channel.closeFuture().sync();", "sync"),
    ("selector.select();", "select"),
    ("server.accept();", "accept"),
    ("plugin.ask(message);", "ask"),
]


@pytest.mark.parametrize(("text", "name"), JAVA_WAITS)
def test_a_wait_without_a_deadline_is_found_in_java(text: str, name: str) -> None:
    assert [found for _, found in waits_in_java(text, declared_in_java(text))] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "Deadline.afterMs(5).get(order.done);",
        "deadline.pause(5);",
        "deadline.await(this, () -> !isLent);",
        "AtomicLong count; count.get();",
        "region.acquire();",
        "turns.await(1, waiter);",
        "// it would wait();",
        '"then wait()"',
        "consumer.accept(1);",
        "  private synchronized Handout take() {\n",
    ],
)
def test_what_does_not_wait_for_ever_is_let_pass_in_java(text: str) -> None:
    assert not list(waits_in_java(text, declared_in_java(text)))


def test_no_source_is_forgotten() -> None:
    check: Callable[[str], bool] = {str(path.relative_to(ROOT)) for path in [*PYTHON, *JAVA]}.__contains__
    assert check("src/mizzle/blocks/deadline.py")
    assert check("java/src/main/java/org/mizzle/bridge/Deadline.java")
