"""`plan`, `rates`, `plan_text`, `plan_options` and `cli.plan`: a job's time from the rates of a measured run."""

from __future__ import annotations

import json

import pytest

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.reports.plan import planned
from genrec_batch.reports.plan_options import PlanConfig
from genrec_batch.reports.rates import Rates
from tests.benchmarks import plan_results

GPU = {"engine": "torch", "device": "cuda:0", "precision": "fp16"}
WITHIN = 0.2  # of a measured run


def report(users=1_000_000, *, gpu=True, workers=1, cores=16, ceilings=None, load=4.0, kept=20, memory=4096.0):
    """The report of a run of round numbers: start 2 s, reading 3, split 4, scoring 10, finish 1."""
    device = {"copy in": 2.0, "prefill": 3.0, "decode": 4.0} if gpu else {"prefill": 3.0, "decode": 4.0}
    seconds = {"open": 2.0, "scan": 3.0, "partition": 4.0, "features": 16.0, "write": 32.0, "model run": 9.5, **device}
    seconds |= {"finish": 1.0, "wait": 0.3, "graphs": 0.2}  # so the device computes 9 s
    times = {"open": (0, 2), "scan": (2, 5), "partition": (5, 9), "features": (9, 18), "model run": (9.5, 19)}
    times |= {"write": (10, 19), "finish": (19, 20)}
    about = GPU if gpu else {"engine": "onnxruntime", "device": "cpu", "precision": "fp32"}
    rows = users * 40
    sizes = {"scan": (rows, rows * 20), "partition": (rows, rows * 56)}
    return {
        "schema": "genrec-batch/report",
        "schema_version": 2,
        "created": "2026-11-30T00:00:00Z",
        "machine": {"cores": cores, "processor": "some", "memory_gib": memory, "load_1min": load},
        "ceilings": ceilings,
        "run": {
            "wall_s": 20.0,
            "summary": {
                "scored_users": users,
                "users": users,
                "input_rows": rows,
                "kept_events": users * kept,
                "bytes": users * 400,
                "version": "0.1.0",
                **({} if workers is None else {"workers": [{"worker": number} for number in range(workers)]}),
                **about,
            },
            "stages": [
                {
                    "stage": name,
                    "seconds": value,
                    "share_of_wall": (times[name][1] - times[name][0]) / 20 if name in times else 0.3,
                    "rows": sizes.get(name, (0, 0))[0],
                    "bytes": sizes.get(name, (0, 0))[1],
                }
                for name, value in seconds.items()
            ],
            "timeline": [{"stage": name, "start_s": a, "stop_s": b} for name, (a, b) in times.items()],
        },
    }


@pytest.fixture
def plan(tmp_path):
    def call(found=None, **options):
        path = tmp_path / "rates.json"
        path.write_text(json.dumps(report() if found is None else found))
        return planned(PlanConfig(rates=str(path), **options))

    return call


def seconds(found):
    return {phase["phase"]: phase["seconds"] for phase in found["phases"]}


def test_the_measured_run_is_planned_as_it_was(plan):
    assert seconds(plan()) == pytest.approx({"start": 2, "reading": 3, "split": 4, "scoring": 10, "finish": 1})
    found = plan(report(gpu=False, workers=2))
    assert seconds(found) == pytest.approx({"start": 2, "reading": 3, "split": 4, "scoring": 10, "finish": 1})
    assert found["users_per_s"] == pytest.approx(1_000_000 / 20)
    assert found["bounds_in"] == "scoring"


def test_rates_of_one_process_on_a_cpu_are_no_plan_for_several(plan):
    assert not plan(report(gpu=False), workers=1)["warnings"]
    assert not plan(report(gpu=False, workers=2), workers=4)["warnings"]
    (warning,) = plan(report(gpu=False), workers=4)["warnings"]
    assert "measure with --workers 4" in warning


def test_twice_the_users_take_twice_the_time_but_for_the_start(plan):
    found = plan(users=2e6)
    assert seconds(found) == pytest.approx({"start": 2, "reading": 6, "split": 8, "scoring": 20, "finish": 2})


def test_gpus_scale_until_the_cores_of_the_host_are_busy(plan):
    assert seconds(plan(gpus=2, cores=16))["scoring"] == pytest.approx(10 / 2)
    found = plan(gpus=8, cores=16)  # 48 s of a core on 16 cores, and what overlaps badly as before
    assert seconds(found)["scoring"] == pytest.approx(48 / 16 * 10 / 9)
    assert found["phases"][3]["limited_by"] == "host cores"
    assert seconds(plan(gpus=8))["scoring"] == pytest.approx(10 / 8)  # by default as many cores for each GPU


def test_more_events_cost_what_grows_with_them(plan):
    found = plan(events_per_user=40, gpus=1)  # the model reads 40 in the place of 20
    assert seconds(found)["scoring"] == pytest.approx((2 * 5 + 4) * 10 / 9)
    assert seconds(found)["reading"] == pytest.approx(3)
    assert plan(events_per_user=400)["job"]["kept_each"] == 50


def test_cost_and_hours_are_those_of_all_gpus(plan):
    found = plan(users=1e9, gpus=64, gpu_hour_cost=3.0)
    assert found["machines"]["count"] == 8
    assert found["gpu_hours"] == pytest.approx(64 * found["seconds"] / 3600)
    assert found["cost"] == pytest.approx(3 * found["gpu_hours"])
    assert 0 < found["gpu_busy_share"] < 1


def test_a_slow_network_or_disk_saturates(plan):
    found = plan(users=1e8, gpus=16, network_gb_s=0.01)
    assert found["saturates"] == "network"
    assert found["phases"][1]["alone"]["network"] == pytest.approx(1e8 * 40 * 20 / (2 * 0.01e9))
    shuffled = 1e8 * 40 * 56 / 2  # half of it is on the right one of two machines already
    assert found["phases"][2]["alone"]["network"] == pytest.approx((1e8 * 40 * 20 + shuffled) / (2 * 0.01e9))
    found = plan(users=1e8, disk_gb_s=0.01)
    assert found["saturates"] == "disk"
    spilled = plan(users=1e8, memory_gib=100.0)["phases"][2]["alone"]["disk"]
    assert spilled == pytest.approx((1e8 * 40 * 56 - 50 * 2**30 + 1e8 * 40 * 20) / 1e9)
    measured = plan(report(ceilings={"disk_read_gb_s": 0.01, "disk_write_gb_s": 5.0}), users=1e8)
    assert measured["phases"][1]["limited_by"] == "disk"


def test_more_processes_than_cores_start_more_slowly(plan):
    slow = report(gpu=False, cores=2)
    slow["run"]["stages"].append({"stage": "engine", "seconds": 1.0, "share_of_wall": 0.05, "rows": 0, "bytes": 0})
    assert seconds(plan(slow))["start"] == pytest.approx(2)
    assert seconds(plan(slow, workers=2))["start"] == pytest.approx(2 + 2)
    assert seconds(plan(slow, workers=4))["start"] == pytest.approx(2 + 2 * 2)
    several = report(gpu=False, cores=2, workers=2)
    assert seconds(plan(several))["start"] == pytest.approx(2)
    assert seconds(plan(slow, workers=4))["scoring"] == pytest.approx(10)


def test_what_the_measured_run_cannot_tell_is_a_warning(plan):
    assert plan()["warnings"] == []
    assert "measure a log that is more alike" in plan(events_per_user=3)["warnings"][0]
    assert "a load of 60.0 on 16 cores" in plan(report(load=60.0))["warnings"][0]
    quick = report()
    quick["run"]["stages"][1]["share_of_wall"] = 0.01
    assert plan(quick)["warnings"] == []
    assert "measure a longer log" in plan(quick, users=1e9)["warnings"][0]
    short = report()
    for bar in short["run"]["timeline"]:
        bar["stop_s"] -= 9 * (bar["stop_s"] > 17)
    assert "its rates are rough" in plan(short)["warnings"][0]


def test_every_assumption_says_where_it_comes_from(plan):
    said = {each["assumption"]: each for each in plan(gpus=16, network_gb_s=3.0)["assumptions"]}
    assert said["network of a machine"]["source"] == "given"
    assert said["log"] == {"assumption": "log", "value": 20, "unit": "bytes per event", "source": "measured"}
    assert {each["source"] for each in said.values()} == {"given", "measured", "assumed"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rates": None}, "--rates is missing"),
        ({"gpus": 2, "workers": 2}, "--gpus goes without --workers"),
        ({"gpu_hour_cost": 1.0}, "goes with --gpus"),
        ({"users": 0.0}, "--users 0: at least 1"),
        ({"disk_gb_s": 0.0}, "above 0"),
        ({"gpus": 6, "machines": 4}, "4 machines alike cannot have them"),
    ],
)
def test_options_that_make_no_plan_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        PlanConfig(**{"rates": "rates.json", **options})


def test_gpus_are_not_planned_by_a_cpu_nor_the_other_way_round(plan):
    with pytest.raises(ConfigError, match="is of a CPU"):
        plan(report(gpu=False), gpus=8)
    with pytest.raises(ConfigError, match="is of a GPU"):
        plan(workers=8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("{}", "no report"),
        (json.dumps({**report(), "schema_version": 1}), "another version"),
        (json.dumps({**report(), "run": None}), "--data EVENTS"),
        (json.dumps({**report(), "run": {**report()["run"], "timeline": []}}), "no user was scored"),
        (json.dumps({**report(), "machine": {}}), "cannot be planned with"),
    ],
)
def test_what_is_no_report_of_a_run_is_refused(tmp_path, content, said):
    (tmp_path / "rates.json").write_text(content)
    with pytest.raises(InputError, match=said):
        Rates.read(str(tmp_path / "rates.json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_is_planned_from_its_own_report(run, log_file, model_dir, workers):
    more = ["--workers", workers, "--shard-users", 4]
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--report", "run.json", *more)
    assert done.code == 0, done.err
    found = run("plan", "--rates", "run.json", "--json").summary
    assert found["seconds"] == pytest.approx(done.summary["seconds"], rel=0.25)
    shown = run("plan", "--rates", "run.json", "--users", "1e9", "--events-per-user", "50")
    assert shown.code == 0, shown.err
    assert "1,000,000,000 users, 50,000,000,000 events on 1 machine" in shown.out
    assert "Assumptions" in shown.out


def test_committed_runs_are_planned_within_a_fifth_by_the_rates_of_another():
    found = plan_results.checks()
    assert {check["engine"] for check in found} == {"torch", "tensorrt"}
    assert {check["users"] for check in found} == {5_000_000, 10_000_000}
    for check in found:
        assert check["planned_s"] == pytest.approx(check["measured_s"], rel=WITHIN), check


def test_the_committed_plans_are_those_of_this_version():
    committed = json.loads((plan_results.RESULTS / "plan_h200.json").read_text())
    assert committed == json.loads(json.dumps(plan_results.result()))
    assert json.loads((plan_results.RESULTS / "rates_h200.json").read_text()) == plan_results.best()


def test_measured_runs_of_several_workers_are_planned_within_a_fifth():
    found = json.loads((plan_results.RESULTS / "plan_cpu.json").read_text())
    assert [run["workers"] for run in found["runs"]] == [1, 2, 4]
    for run in found["runs"]:
        rates = found["rates"][str(run["rates_of"])]
        planned_s = plan_results.plan_of(rates, workers=run["workers"])["seconds"]
        assert planned_s == pytest.approx(run["measured_s"], rel=WITHIN), run
