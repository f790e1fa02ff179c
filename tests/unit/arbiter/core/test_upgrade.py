"""Upgrades, decided one event at a time: the preflight, the execution, and their failures."""

from __future__ import annotations

import json

import pytest
from unit.arbiter.core.test_supervisor import Story

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import Policy
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.core.supervisor_state import restored, state_of
from servo.arbiter.core.upgrade import Upgrade, UpgradePhase
from servo.ipc import messages as msg


def test_usr2_tries_the_new_program_then_executes_it_and_reloads() -> None:
    story = Story().serve()
    old = story.alive()
    story.signal("SIGUSR2")
    assert story.took(actions.Preflight) == [actions.Preflight("")]
    assert story.alive() == old
    story.preflight_ended(None)
    assert story.took(actions.Execute) == [actions.Execute("")]
    assert story.upgrades == 1
    # An ordinary reload follows, by the new program.
    assert story.took(actions.CheckConfig) == [actions.CheckConfig(2)]
    story.config_checked(None)
    story.ready(story.newest())
    assert story.supervisor.generation == 2


def test_a_failed_preflight_changes_nothing() -> None:
    story = Story().serve()
    old = story.alive()
    story.signal("SIGUSR2")
    story.preflight_ended("importing x failed")
    assert story.said("upgrade (SIGUSR2) failed: importing x failed; the server goes on as it was")
    assert story.supervisor.upgrade is None
    assert story.alive() == old
    assert not story.took(actions.Execute)


def test_a_failed_execution_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story().serve()
    monkeypatch.setattr(story, "execute_fails", lambda: "no memory")
    story.signal("SIGUSR2")
    story.preflight_ended(None)
    assert story.said("upgrade (SIGUSR2) failed: no memory; the server goes on as it was")
    assert story.upgrades == 0
    assert story.supervisor.upgrade is None


def test_a_preflight_has_the_time_of_a_boot() -> None:
    story = Story(boot_timeout_s=5.0).serve()
    story.signal("SIGUSR2")
    story.advance(4.9)
    assert story.supervisor.upgrade is not None
    story.advance(0.2)
    assert story.took(actions.CancelPreflight)
    assert story.said("failed: the preflight takes over 5 s (boot_timeout)")
    # Its result comes too late.
    story.tell(events.PreflightEnded())
    assert not story.took(actions.Execute)


def test_when_an_upgrade_is_refused() -> None:
    story = Story().start()
    assert story.asks("upgrade", "").refused == "no worker has been ready yet"
    story.all_ready()
    story.hup()
    refused = story.asks("upgrade", "").refused
    assert refused == "a reload is under way; ask again when it has finished"
    story.ready(story.newest())
    story.all_ready()
    assert story.asks("upgrade", "/opt/python").refused == ""
    assert story.took(actions.Preflight) == [actions.Preflight("/opt/python")]
    assert story.asks("upgrade", "").refused == "an upgrade is under way already"
    refused = story.asks("reload", None).refused
    assert refused == "an upgrade is under way, and it ends with a reload"
    story.signal("SIGTERM")
    assert story.asks("upgrade", "").refused == "the server is stopping"


def test_a_refused_signal_is_logged() -> None:
    story = Story().serve()
    story.hup()
    story.signal("SIGUSR2")
    assert story.said("SIGUSR2: no upgrade: a reload is under way")


def test_a_reload_that_is_asked_for_meanwhile_follows_a_failed_upgrade() -> None:
    story = Story().serve()
    story.signal("SIGUSR2")
    story.signal("SIGHUP")
    assert not story.took(actions.CheckConfig)
    story.preflight_ended("no")
    assert story.took(actions.CheckConfig) == [actions.CheckConfig(2)]


@pytest.mark.parametrize("delay_s", [0.0, 5.0])
def test_a_stop_ends_the_upgrade(delay_s: float) -> None:
    story = Story(pre_stop_delay_s=delay_s).serve()
    story.signal("SIGUSR2")
    story.signal("SIGTERM")
    assert story.took(actions.CancelPreflight)
    assert story.supervisor.upgrade is None


def test_a_stop_that_comes_before_the_execution_wins() -> None:
    supervisor = Supervisor(Policy(workers=1))
    supervisor.handle(events.Started(), 0.0)
    supervisor.handle(events.Forked(1, 100), 0.0)
    supervisor.handle(events.MessageReceived(1, msg.Ready()), 0.0)
    supervisor.handle(events.SignalReceived("SIGUSR2"), 0.0)
    supervisor.handle(events.PreflightEnded(), 0.0)
    upgrade = supervisor.upgrade
    assert upgrade is not None
    assert upgrade.phase is UpgradePhase.EXECUTING
    done = supervisor.handle(events.SignalReceived("SIGTERM"), 0.0)
    assert supervisor.upgrade is None
    assert actions.CancelPreflight() not in done


def test_a_server_that_was_given_back_goes_on() -> None:
    story = Story().serve()
    old = story.alive()
    story.signal("SIGUSR2")
    story.supervisor = restored(json.loads(json.dumps(state_of(story.supervisor))))
    story.preflighting = False
    story.now += 10
    story.tell(events.GivenBack("the new program could not start: no memory"))
    assert story.said("upgrade failed: the new program could not start: no memory; the server")
    assert not story.said("stood still")
    assert story.alive() == old
    assert story.supervisor.reload is None


def test_a_paused_server_stays_paused() -> None:
    story = Story().serve()
    story.signal("SIGWINCH")
    for proc in story.alive():
        story.exits(proc)
    story.signal("SIGUSR2")
    story.preflight_ended(None)
    assert story.upgrades == 1
    assert story.supervisor.paused
    assert not story.took(actions.CheckConfig)
    assert story.alive() == []


def test_of_winch_and_hup_during_an_upgrade_the_later_one_counts() -> None:
    story = Story().serve()
    story.signal("SIGUSR2")
    story.signal("SIGHUP")
    story.signal("SIGWINCH")
    for proc in story.alive():
        story.exits(proc)
    story.preflight_ended("no such file")
    assert story.supervisor.reload is None
    story.advance(5)
    assert story.alive() == []
    story.signal("SIGUSR2")
    story.signal("SIGHUP")
    assert story.alive() != []
    story.preflight_ended(None)
    assert story.supervisor.reload is not None, "the one at the end of each upgrade"


def test_a_standstill_extends_the_limit() -> None:
    upgrade = Upgrade("SIGUSR2", "", limit_s=10.0, now=100.0)
    upgrade.shift(5.0)
    assert upgrade.due_at == 115.0
    upgrade.phase = UpgradePhase.EXECUTING
    assert upgrade.due_at == float("inf")


def test_an_unlimited_preflight() -> None:
    assert Upgrade("SIGUSR2", "", limit_s=0.0, now=100.0).due_at == float("inf")
