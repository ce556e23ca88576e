"""Widgets that train in the background: pumped by hand, in an event loop, and in a real kernel."""

import asyncio
import copy
import gc
import time

import pytest
import reference
import torch
from jupyter_client.manager import start_new_kernel
from matplotlib.figure import Figure

import rso_lab as rso
from rso_lab import plots
from rso_lab.experiments import held_out
from rso_lab.notebook import Live
from rso_lab.widgets import Monitor, Race

RSO = rso.RSO(2, 20)


@pytest.fixture
def monitor(digits):
    return Monitor(rso.models.build("one_conv", digits), digits, RSO)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def usable(live):
    return {name for name, button in live.buttons.items() if not button.disabled}


def test_it_ends_in_the_weights_of_fit_whatever_is_pressed(digits):
    model = reference.small_network(torch.float32)
    other = copy.deepcopy(model)
    fitted = rso.fit(other, held_out(digits), RSO, seed=0)
    monitor = Monitor(model, digits, RSO)
    monitor.buttons["start"].click()
    for _ in range(40):
        monitor.pump(0)
        monitor.buttons["pause"].click()
        assert not monitor.pump(0)
        monitor.buttons["start"].click()
    assert monitor.search.proposals == 40
    monitor.finish()
    assert monitor.state == "done"
    assert same(weights(model), weights(other))
    assert monitor.search.measured["evaluations"][-1] == fitted.cycles[-1].evaluations
    assert monitor.search.kept == {name: share for name, share in fitted.cycles[-1].kept.items() if name != "all"}


def test_a_click_is_answered_before_the_picture_is_drawn(monitor):
    told = []
    for name, button in monitor.buttons.items():
        button.observe(lambda change, name=name: told.append(name), names="disabled")
    monitor.image.observe(lambda change: told.append("picture"), names="value")
    for click, changed in ((monitor.pause, {"start", "pause"}), (monitor.reset, set(monitor.buttons))):
        monitor.start()
        before = monitor.search.proposals
        while monitor.search.proposals < before + 40:
            monitor.pump(0)
        monitor.said.value = monitor.image.value = "as it was"
        told.clear()
        click()
        assert set(told[:-1]) == changed
        assert told[-1] == "picture"


def test_the_accuracies_are_the_networks(digits, monitor):
    first = copy.deepcopy(monitor.search.model)
    monitor.finish()
    fitted = rso.fit(first, held_out(digits), RSO, seed=0)
    found = dict(zip(monitor.search.measured["evaluations"], monitor.search.accuracies, strict=True))
    assert len(found) == 1 + 2 * 4 + 1  # 690 is no multiple of four
    for record in fitted.cycles:
        if record.evaluations in found:
            assert found[record.evaluations] == pytest.approx(record.test_accuracy)
    line = monitor.figure.axes[0].lines[0]
    assert line.get_xdata()[-1] == 2
    assert line.get_ydata()[-1] == pytest.approx(fitted.cycles[-1].test_accuracy)


@pytest.mark.parametrize("button", ["pause", "stop"])
def test_a_network_at_rest_has_the_statistics_of_its_weights(digits64, button):
    model = reference.small_network()
    monitor = Monitor(model, digits64, RSO)
    monitor.start()
    for _ in range(130):
        monitor.pump(0)
    monitor.buttons[button].click()
    with torch.no_grad():
        expected = reference.outputs(model, digits64.x_test, held_out(digits64).x_train, first=99)
        assert torch.allclose(model(digits64.x_test), expected)
    assert not model.training


def test_the_buttons_say_what_can_be_done(monitor):
    assert usable(monitor) == {"start"}
    monitor.start()
    assert usable(monitor) == {"pause", "stop", "reset"}
    monitor.buttons["pause"].click()
    assert usable(monitor) == {"start", "stop", "reset"}
    monitor.start()
    monitor.buttons["stop"].click()
    assert monitor.state == "stopped"
    assert usable(monitor) == {"reset"}
    monitor.start()
    assert monitor.state == "stopped"


def test_no_garbage_collection_of_everything_while_it_works(monitor):
    """All that torch and matplotlib have made takes a quarter of a second to go through."""
    monitor.start()
    for at_rest in (monitor.pause, monitor.stop):
        assert gc.get_freeze_count() > 10 * len(gc.get_objects())
        at_rest()
        assert gc.get_freeze_count() == 0
        monitor.reset()
        monitor.start()
    monitor.finish()
    assert gc.get_freeze_count() == 0


def test_reset_is_the_beginning(monitor):
    first = weights(monitor.search.model)
    ends = []
    for _ in range(2):
        monitor.finish()
        ends.append(weights(monitor.search.model))
        assert not same(ends[-1], first)
        monitor.buttons["reset"].click()
        assert same(weights(monitor.search.model), first)
        assert monitor.search.measured["evaluations"] == [0]
        assert usable(monitor) == {"start"}
    assert same(*ends)


def test_one_is_at_work_at_a_time(monitor, digits):
    monitor.start()
    monitor.pump(0)
    other = Monitor(rso.models.build("one_conv", digits), digits, RSO)
    assert monitor.state == "stopped"
    another = Race(rso.models.build("one_conv", digits), digits, {"one": RSO})
    other.start()
    another.start()
    assert (other.state, another.state) == ("stopped", "running")
    assert Live.latest is another


def test_whoever_waits_may_be_interrupted(digits):
    async def press():
        monitor = Monitor(rso.models.build("one_conv", digits), digits, RSO)
        monitor.start()
        await asyncio.sleep(0.05)
        monitor.task.cancel()  # as a kernel does with a cell that awaits
        await asyncio.wait([monitor.task])
        assert monitor.state == "paused"
        assert "start" in usable(monitor)
        monitor.start()
        task = monitor.task
        for _ in range(3):  # within one cell
            monitor.pause()
            monitor.start()
        assert monitor.task is task
        await task
        assert monitor.state == "done"

    asyncio.run(press())


def test_clicks_are_answered_while_it_works(digits):
    async def press():
        monitor = Monitor(rso.models.build("one_conv", digits), digits, RSO)
        monitor.buttons["start"].click()
        while monitor.search.proposals < 50:
            await asyncio.sleep(0.01)
        monitor.buttons["pause"].click()
        await asyncio.sleep(0.1)
        assert monitor.state == "paused"
        assert monitor.search.proposals < 2 * 690
        assert monitor.task.done()
        monitor.buttons["start"].click()
        await asyncio.sleep(0)
        await monitor.task
        assert monitor.state == "done"

    asyncio.run(press())


def test_what_goes_wrong_is_said_and_raised(digits, monkeypatch):
    async def press():
        monitor = Monitor(rso.models.build("one_conv", digits), digits, RSO)
        monkeypatch.setattr(monitor.search, "accuracy", lambda: 1 / 0)
        monitor.start()
        with pytest.raises(ZeroDivisionError):
            await monitor.task
        assert monitor.state == "stopped"
        assert monitor.said.value == "Stopped by ZeroDivisionError. division by zero"

    asyncio.run(press())


def test_an_interrupt_of_finish_leaves_a_network(monitor, digits, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor.search, "accuracy", interrupted)
    monitor.finish()
    assert monitor.state == "stopped"
    assert monitor.search.proposals == 172
    assert capsys.readouterr().out == "Stopped.\n"
    assert "start" not in usable(monitor)
    assert rso.fit(monitor.search.model, digits, rso.RSO(1, 20), seed=0).cycles


def test_a_race_is_at_equal_evaluations_and_ends_as_fit_does(digits):
    methods = {level: rso.RSO(1, 20, level=level) for level in ("weight", "layer", "network")}
    methods["one side"] = rso.RSO(1, 20, opposite=False)
    model = rso.models.build("one_conv", digits)
    race = Race(model, digits, methods)
    race.start()
    while race.pump(0):
        counts = [search.evaluations for label, search in race.searches.items() if label != "one side"]
        assert max(counts) - min(counts) <= 3
    for label, method in methods.items():
        other = copy.deepcopy(model)
        history = rso.fit(other, held_out(digits), method, seed=0)
        assert same(weights(race.searches[label].model), weights(other))
        assert race.searches[label].accuracies[-1] == pytest.approx(history.cycles[-1].test_accuracy)
        assert f"{label} {history.cycles[-1].test_accuracy:.1%}" in race.said.value
    assert [line.get_label() for line in race.figure.axes[0].lines[:4]] == list(methods)
    race.buttons["reset"].click()
    assert all(same(weights(search.model), weights(model)) for search in race.searches.values())


def test_filters_and_shares_are_drawn():
    weight = torch.arange(5.0)[:, None, None, None] * torch.ones(5, 3, 2, 2)
    sheet = plots.filters(weight, (3, 8, 8), Figure().subplots()).images[0].get_array()
    assert sheet.shape == (2 * 3 - 1, 3 * 3 - 1)
    assert sheet[4, 4] == 4
    linear = torch.randn(20, 192)
    shown = plots.filters(linear, (3, 8, 8), Figure().subplots()).images[0].get_array()
    assert shown[0, 0] == pytest.approx(float(linear[0, [0, 64, 128]].mean()))
    assert shown.shape == (4 * 9 - 1, 4 * 9 - 1)
    ax = plots.kept({"fc": 0.2, "conv1": 0.4}, Figure().subplots())
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.4]


SET_UP = """
import rso_lab as rso, time
data = rso.load("digits")
monitor = rso.widgets.Monitor(rso.models.build("one_conv", data), data, rso.RSO(500, 200))
print(monitor.buttons["pause"].model_id)
"""


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel()
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code):
    printed = []

    def hook(message):
        assert message["msg_type"] != "error", message["content"]
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    client.execute_interactive(code, output_hook=hook, timeout=120)
    return "".join(printed).strip()


def until_it_says(client, code, wanted):
    for _ in range(100):
        said = run(client, code)
        if said == wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"it says {said!r}, not {wanted!r}")


def test_an_interrupt_between_cells_pauses_it(kernel):
    manager, client = kernel
    run(client, SET_UP + "monitor.start()")
    until_it_says(client, "print(monitor.search.proposals > 100)", "True")
    for _ in range(3):
        manager.interrupt_kernel()
        until_it_says(client, "print(monitor.state)", "paused")
        before = run(client, "print(monitor.search.proposals)")
        assert run(client, "time.sleep(0.3); print(monitor.search.proposals)") == before
        run(client, "monitor.start()")
        until_it_says(client, f"print(monitor.search.proposals > {before})", "True")
    run(client, "monitor.stop()")
    until_it_says(client, "import signal; print(monitor.task.done())", "True")


def test_a_click_from_a_subshell_is_answered(kernel):
    _, client = kernel
    comm = run(client, SET_UP + "monitor.start()")
    client.control_channel.send(client.session.msg("create_subshell_request"))
    reply = client.control_channel.get_msg(timeout=20)
    subshell = reply["content"]["subshell_id"]
    until_it_says(client, "print(monitor.search.proposals > 100)", "True")
    click = {"comm_id": comm, "data": {"method": "custom", "content": {"event": "click"}}}
    message = client.session.msg("comm_msg", click)
    message["header"]["subshell_id"] = subshell
    client.shell_channel.send(message)
    until_it_says(client, "print(monitor.state)", "paused")
    run(client, "monitor.stop()")
