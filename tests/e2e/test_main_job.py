"""The main job on embedded defaults: the built file, a directory queue and a directory store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from runner.locks import try_lock
from tests.e2e.harness import WATCHED, Workplace, processes, put, until

SCRIPT = """
import json, os, pathlib, sys
print("hello", *sys.argv[1:])
print(json.dumps({"loss": 0.5}))
print(json.dumps([{"op": "add", "path": "/epochs", "value": 3}]))
pathlib.Path("../modeldir").joinpath("model.json").write_text("{}")
print("greeting", os.environ["GREETING"], "secret", os.environ.get("AMQP_URL", "none"), file=sys.stderr)
"""


def test_a_message_travels_the_whole_way(place: Workplace) -> None:
    message = place.message(SCRIPT, args=["'two words'", "'$HOME'"])
    message["config"]["env"] = {"GREETING": "%USER%%HOME%%AMQP_MGT_URL%"}
    place.publish(message)
    runner = place.start(env={"AMQP_MGT_URL": "http://secret"})
    place.settled()
    assert runner.stop() == 0
    home = place.env["HOME"]
    assert "hello two words $HOME\n" in place.output()
    assert f"greeting %USER%{home}%AMQP_MGT_URL% secret none\n" in place.output()
    assert place.result("modeldir", "model.json") == b"{}"
    document = place.metadata()
    assert document["loss"] == 0.5
    assert document["epochs"] == 3
    told = document["studioml"]
    assert told["status"] == "completed"
    assert told["experiment"] == {"key": "demo", "project": "tests"}
    assert told["load_time"] <= told["start_time"] <= told["stop_time"]
    assert told["artifacts"]["workspace"] == message["experiment"]["artifacts"]["workspace"]["qualified"]
    assert [entry["package"]["key"] for entry in told["pipdeptree"] if entry["package"]["key"] == "pip"]
    assert any(line["msg"] == "hello two words $HOME" for line in told["log"])
    kept = next((place.store / "metadata").glob("request-host-*.json"))
    assert json.loads(kept.read_text())["experiment"]["key"] == "demo"


def test_submit_waits_and_brings_the_results(place: Workplace) -> None:
    workspace = place.root / "code"
    workspace.mkdir()
    (workspace / "train.py").write_text("import six, sys; print('six', six.__name__, sys.argv[1:])\n" + SCRIPT)
    extra = place.root / "data.txt"
    extra.write_text("data")
    runner = place.start("--queue-match", "^local_made$")
    done = place.submit(
        *("--queue", "local_made", "--queue-root", str(place.queues), "--store", f"file://{place.store}"),
        *("--requirement", "six>=1.16,<2", "--env", "GREETING=a=b", "--artifact", f"data={extra}"),
        *("--wait", "--output", "results", "code", "train.py", "--wait", "two words", "$HOME"),
    )
    assert done.returncode == 0, done.stdout + done.stderr + runner.log
    assert "completed" in done.stdout
    log = (place.root / "results" / "output" / "output").read_text()
    assert "six six ['--wait', 'two words', '$HOME']\n" in log
    assert "greeting a=b secret none" in log
    assert (place.root / "results" / "modeldir" / "model.json").read_text() == "{}"
    until(lambda: not list((place.queues / "local_made").iterdir()), "the message is acknowledged")


def test_a_failing_submission_says_so(place: Workplace) -> None:
    workspace = place.root / "code"
    workspace.mkdir()
    (workspace / "bad.py").write_text("raise SystemExit(3)\n")
    place.start("--max-attempts", "1")
    done = place.submit(
        *("--queue", "local_test", "--queue-root", str(place.queues), "--store", f"file://{place.store}"),
        *("--wait", "code", "bad.py"),
    )
    assert done.returncode == 1
    assert "bad.py ended with exit status 3" in done.stdout


def test_no_checkpoint_comes_after_the_end(place: Workplace) -> None:
    for number in range(6):
        message = place.message(f"import time; time.sleep({0.3 + number / 50})", key=f"quick{number}")
        message["config"]["saveWorkspaceFrequency"] = "100ms"
        place.publish(message, f"quick{number}")
    place.start()
    place.settled()
    documents = [json.loads(path.read_text()) for path in (place.store / "metadata").glob("scrape-host-*")]
    assert len(documents) == 6
    assert {document["studioml"]["status"] for document in documents} == {"completed"}


def test_an_environment_is_built_once(place: Workplace) -> None:
    for key in ("first", "second"):
        place.publish(place.message("import toml; print(toml.__name__)", key=key, pythonenv=["toml==0.10.2"]), key)
        runner = place.start()
        place.settled(180)
        assert runner.stop() == 0
    assert "making a virtual environment" in place.output("first")
    assert place.output("second").startswith("toml\n")
    assert "toml" in [entry["package"]["key"] for entry in place.metadata()["studioml"]["pipdeptree"]]


def test_files_that_an_experiment_puts_into_its_metadata_are_stored_and_links_are_not(place: Workplace) -> None:
    script = "import os, pathlib\nplace = pathlib.Path('../_metadata')\n(place / 'own.json').write_text('{}')\n"
    place.publish(place.message(script + "(place / 'sub').mkdir()\nos.symlink('/etc/passwd', place / 'link')\n"))
    place.start()
    place.settled()
    stored = {path.name for path in (place.store / "metadata").iterdir()}
    assert "own.json" in stored
    assert len(stored) == 3
    assert not {"link", "sub"} & stored


def test_experiments_run_side_by_side_as_far_as_they_fit(place: Workplace) -> None:
    meeting = "import pathlib, time\nme = pathlib.Path('{0}')\nme.touch()\nother = pathlib.Path('{1}')\n"
    meeting += "while not other.exists(): time.sleep(0.05)\nprint('met')\n"
    one, two = place.root / "one", place.root / "two"
    place.publish(place.message(meeting.format(one, two), key="first"), "first")
    place.publish(place.message(meeting.format(two, one), key="second"), "second")
    place.start("--max-cores", "2")
    place.settled()
    assert "met\n" in place.output("first")
    assert "met\n" in place.output("second")


def test_a_queue_whose_message_does_not_fit_blocks_no_other(place: Workplace) -> None:
    large = place.message("print('large')", key="large", resources_needed={"cpus": 4096, "ram": "1mb", "hdd": "1mb"})
    wants_gpu = place.message("print()", key="gpu", resources_needed={"cpus": 1, "gpus": 1, "ram": "1mb", "hdd": "1mb"})
    place.publish(large, "large")
    for queue, message in {"local_gpu": wants_gpu, "local_other": place.message("print('fits')")}.items():
        (place.queues / queue).mkdir()
        (place.queues / queue / "message").write_text(json.dumps(message))
    runner = place.start()
    until(lambda: not list((place.queues / "local_other").iterdir()), "the fitting message is done")
    assert "fits\n" in place.output()
    assert "needs 4096 cpus" in runner.saw("'large'")
    assert "GPU" in runner.saw("'gpu'")
    assert place.waiting == ["large"]
    assert (place.queues / "local_gpu" / "message").exists()
    assert runner.stop() == 0


def test_what_is_stored_while_it_runs_can_be_seen_before_its_end(place: Workplace) -> None:
    script = "import pathlib, time\nprint('early', flush=True)\n"
    script += f"while not pathlib.Path('{place.root}/go').exists(): time.sleep(0.05)\nprint('late')\n"
    message = place.message(script)
    message["config"]["saveWorkspaceFrequency"] = "300ms"
    message["config"]["database"] = {"type": "local", "endpoint": str(place.store), "bucket": "database"}
    record = place.store / "database/experiments/demo"
    put(record, json.dumps({**message["experiment"], "status": "waiting"}).encode())
    place.publish(message)
    place.start()
    until((place.store / "experiments/demo/output.tar").exists, "a checkpoint")
    told = until(lambda: "time_last_checkpoint" in (read := json.loads(record.read_text())) and read, "it is recorded")
    assert told["status"] == "running"
    assert told["time_started"] <= told["time_last_checkpoint"] <= time.time()
    until(lambda: "early\n" in place.output(), "a checkpoint with output")
    assert "late" not in place.output()
    until(lambda: list((place.store / "metadata").glob("scrape-host-*")), "a checkpoint with metadata")
    assert place.metadata()["studioml"]["status"] == "running"
    (place.root / "go").touch()
    place.settled()
    assert "late\n" in place.output()
    assert place.metadata()["studioml"]["status"] == "completed"


def test_a_killed_runner_loses_no_message_and_leaves_no_process(place: Workplace) -> None:
    flag = place.root / "second"
    script = "import pathlib, subprocess, sys, time\n"
    script += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    script += f"print('up', flush=True)\nwhile not pathlib.Path('{flag}').exists(): time.sleep(0.05)\nprint('done')\n"
    place.publish(place.message(script))
    first = place.start()
    first.saw("starts")
    until(lambda: len(place.experiments()) >= 2, "the experiment runs")
    first.process.send_signal(signal.SIGKILL)
    first.ended()
    until(lambda: not place.experiments(), "nothing is left of the experiment")
    assert place.waiting == ["message"]
    assert not (place.store / "experiments/demo/output.tar").exists()
    flag.touch()
    second = place.start()
    place.settled()
    assert second.stop() == 0
    assert "done\n" in place.output()
    assert not processes(str(place.working / "studio-runner"))
    assert not list((place.working / "studio-runner" / "experiments").iterdir())


def test_a_killed_attempt_is_given_back_and_its_processes_die(place: Workplace) -> None:
    script = "import os, pathlib, time\n"
    script += f"path = pathlib.Path('{place.root}/pid')\nif path.exists(): raise SystemExit\n"
    script += "path.write_text(str(os.getppid()))\ntime.sleep(600)\n"
    place.publish(place.message(script))
    runner = place.start()
    attempt = int(until(lambda: (place.root / "pid").exists() and (place.root / "pid").read_text(), "it runs"))
    os.kill(attempt, signal.SIGKILL)
    assert "killed by signal 9" in runner.saw("was lost")
    place.settled()
    until(lambda: not place.experiments(), "nothing is left of the experiment")


def test_a_stopped_runner_gives_the_message_back_with_what_there_was(place: Workplace) -> None:
    script = f"import pathlib, time\nprint('begun', flush=True)\npathlib.Path('{place.root}/up').touch()\n"
    place.publish(place.message(script + "time.sleep(600)"))
    runner = place.start("--grace-period", "0s")
    until((place.root / "up").exists, "the experiment runs")
    assert runner.stop() == 0
    assert place.waiting == ["message"]
    assert "begun\n" in place.output()
    assert "told to stop" in place.output()
    assert not place.experiments()


def test_a_stop_signal_lets_what_runs_finish_and_a_second_one_does_not(place: Workplace) -> None:
    flag = place.root / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path('{flag}').exists(): time.sleep(0.05)\nprint('finished')\n"
    place.publish(place.message(wait))
    runner = place.start("--grace-period", "10m")
    until(place.experiments, "the experiment runs")
    runner.process.send_signal(signal.SIGTERM)
    runner.saw("stopping")
    flag.touch()
    assert runner.ended() == 0
    assert "finished\n" in place.output()
    assert place.waiting == []
    flag.unlink()
    place.publish(place.message(wait, key="other"))
    runner = place.start("--grace-period", "10m")
    until(place.experiments, "the experiment runs")
    runner.process.send_signal(signal.SIGINT)
    runner.saw("stopping")
    runner.process.send_signal(signal.SIGINT)
    assert runner.ended() == 0
    assert place.waiting == ["message"]


def test_many_bad_messages_do_not_keep_the_runner_from_anything_else(place: Workplace) -> None:
    for number in range(4000):
        place.publish(b'{"bad": true}', f"bad{number:04}")
    good = place.queues / "local_other" / "good"
    good.parent.mkdir()
    good.write_text(json.dumps(place.message("print('good')")))

    def taken() -> bool:
        with good.open() as file:
            return not try_lock(file)

    runner = place.start()
    until(taken, "the good one is taken")
    assert place.waiting, "before all of the bad ones"
    place.settled()
    assert runner.log.count("refused") == 4000
    runner.saw("completed")


def test_what_the_runner_spends_its_time_on_can_be_looked_at(place: Workplace) -> None:
    place.publish(place.message("print('one')"))
    profile = place.root / "profile"
    runner = place.start("--limit-tasks", "1", "--cpu-profile", str(profile))
    assert runner.ended() == 0
    argv = [sys.executable, "-m", "pstats", str(profile)]
    shown = subprocess.run(argv, input="stats\n", capture_output=True, text=True, check=True)
    assert "supervisor.py" in shown.stdout and "(tick)" in shown.stdout


def test_limits_end_the_runner(place: Workplace) -> None:
    place.publish(place.message("print('one')"), "one")
    place.publish(place.message("print('two')"), "two")
    runner = place.start("--limit-tasks", "1")
    assert runner.ended() == 0
    assert place.waiting == ["two"]
    runner = place.start("--limit-idle-duration", "500ms")
    assert runner.ended() == 0
    assert place.waiting == []


def test_after_the_interval_what_runs_is_finished_and_nothing_more_is_taken(place: Workplace) -> None:
    go = place.root / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path('{go}').exists(): time.sleep(0.05)\nprint('finished')\n"
    place.publish(place.message(wait), "first")
    runner = place.start("--limit-interval", "5s", *WATCHED)
    until(place.experiments, "the experiment runs")
    until(lambda: "--limit-interval 5s is over" in runner.page("/readyz")[1], "the interval is over")
    place.publish(place.message("pass", key="late"), "late")
    go.touch()
    assert runner.ended() == 0
    assert "finished\n" in place.output()
    assert place.waiting == ["late"]


def test_the_runner_says_its_version(place: Workplace) -> None:
    said = subprocess.run([*place.program, "--version"], capture_output=True, text=True, env=place.env, check=True)
    assert said.stdout.startswith("studio-runner 0.")
