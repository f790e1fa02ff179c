"""The supervisor's decisions about molds: when to make one, and the reaction to its end."""

from __future__ import annotations

import pytest
from simulation.world import MoldProc
from unit.arbiter.core.test_supervisor import Story

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import ABORT_S, FORK_ORDER_S, PROVED_MOLD_S, Policy
from servo.ipc import messages as msg


class MoldStory(Story):
    """A world with `preload_app`, in which molds do only what the test says."""

    def __init__(self, workers: int = 2, **values: object) -> None:
        super().__init__(workers, preload=True, **values)
        self.holds_orders = False
        self.was_forked: actions.Fork | None = None

    def has_forked(self, order: actions.Fork) -> bool:
        return order is self.was_forked

    def on_order(self, order: actions.Fork) -> None:
        if not self.holds_orders:
            super().on_order(order)

    def mold(self, generation: int) -> MoldProc:
        return self.molds[generation]

    def serve(self) -> MoldStory:
        self.start()
        self.mold_ready(self.mold(1))
        self.all_ready()
        return self

    def generations(self) -> list[int]:
        return [proc.generation for proc in self.alive()]

    def retired_end(self) -> None:
        """Everyone that was told to end does; who boots gets ready; until nothing is left."""
        for _ in range(20):
            for proc in self.alive():
                if proc.asked is not None:
                    self.exits(proc)
            self.all_ready()


def test_workers_wait_for_their_mold() -> None:
    story = MoldStory(2).start()
    assert story.took(actions.ForkMold) == [actions.ForkMold(1)]
    assert story.alive() == []
    story.mold_ready(story.mold(1))
    assert story.generations() == [1, 1]
    assert story.said("the mold of generation 1 (pid 101) has imported the app after 0.00 s")


@pytest.mark.parametrize(("kind", "code"), [("app", 4), ("boot", 3)])
def test_an_app_that_cant_be_imported_ends_the_start(kind: str, code: int) -> None:
    story = MoldStory(1).start()
    story.mold_ends(story.mold(1), "no module shop", kind, "a traceback")
    assert story.exit_code == code
    assert story.said("could not load the app: no module shop")
    assert story.said("a traceback")


def test_a_mold_that_crashes_at_the_start_is_tried_three_times() -> None:
    story = MoldStory(1).start()
    for _ in range(3):
        assert story.exit_code is None
        story.mold_ends(story.mold(1), "SIGSEGV")
        story.advance(1)
    assert story.exit_code == 3
    assert len(story.took(actions.ForkMold)) == 3


def test_with_reload_a_broken_first_mold_waits_for_a_file_to_change() -> None:
    story = MoldStory(1, wait_for_change=True).start()
    story.mold_ends(story.mold(1), "a typo", "app")
    story.advance(60)
    assert story.exit_code is None
    assert story.molds == {}
    story.config = story.supervisor.policy
    story.tell(events.FileChanged(("app.py",)))
    story.config_checked(None)
    story.mold_ready(story.mold(2))
    story.all_ready()
    assert story.generations() == [2]


def test_a_mold_that_hangs_at_import_is_aborted_and_killed() -> None:
    story = MoldStory(1, boot_timeout_s=5.0).start()
    story.advance(5)
    assert story.took(actions.KillMold) == [actions.KillMold(1, "SIGABRT")]
    story.advance(ABORT_S)
    assert story.took(actions.KillMold)[1:] == [actions.KillMold(1, "SIGKILL")]
    story.mold_ends(story.mold(1), "SIGKILL")
    assert story.exit_code == 3
    assert story.said("could not load the app: it has not imported the app after 5 s")


def test_a_reload_makes_a_mold_and_a_canary_from_it() -> None:
    story = MoldStory(2).serve()
    story.hup()
    assert sorted(story.molds) == [1, 2]
    assert story.generations() == [1, 1]
    story.mold_ready(story.mold(2))
    assert story.generations() == [1, 1, 2]
    story.all_ready()
    story.retired_end()
    assert story.generations() == [2, 2]
    assert story.said("reload (SIGHUP) finished")
    assert sorted(story.molds) == [2], "the old mold is not needed any more"


def test_a_broken_release_is_rolled_back_with_its_mold() -> None:
    story = MoldStory(2).serve()
    story.hup()
    story.mold_ends(story.mold(2), "SyntaxError", "app", "a traceback")
    assert story.said("rolled back: its app could not be loaded: SyntaxError")
    assert story.generations() == [1, 1]
    assert sorted(story.molds) == [1]
    assert story.supervisor.generation == 1


def test_while_a_release_fails_workers_come_back_from_the_old_mold() -> None:
    story = MoldStory(2).serve()
    story.hup()
    story.exits(story.alive()[0], -9, "SIGKILL")
    story.advance(1)
    assert story.generations() == [1, 1], "the new one is of the old code"
    story.mold_ends(story.mold(2), "SyntaxError", "app")
    story.exits(story.alive()[0], -9, "SIGKILL")
    story.advance(1)
    assert story.generations() == [1, 1]


def test_a_mold_that_dies_is_replaced_by_a_reload() -> None:
    story = MoldStory(2).serve()
    story.mold_ends(story.mold(1), "SIGKILL")
    assert story.said("its workers serve on, and none is forked until there is a new one")
    story.exits(story.alive()[0], -9, "SIGKILL")
    story.advance(3)
    assert story.generations() == [1], "nobody can fork a worker"
    story.config = story.supervisor.policy
    story.config_checked(None)
    story.mold_ready(story.mold(2))
    story.all_ready()
    story.retired_end()
    assert story.generations() == [2, 2]
    assert sorted(story.molds) == [2]


def test_a_dead_mold_and_a_broken_release_are_tried_again_with_delays() -> None:
    story = MoldStory(1).serve()
    story.config = story.supervisor.policy
    story.mold_ends(story.mold(1), "SIGKILL")
    tried = 0
    for _ in range(100):
        if story.checking is not None:
            story.config_checked(None)
            story.mold_ends(story.mold(story.supervisor.last_generation), "a typo", "app")
            tried += 1
        story.advance(1)
    assert story.generations() == [1], "its last worker serves"
    assert 5 < tried < 12
    story.advance(30)
    story.config_checked(None)
    story.mold_ready(story.mold(story.supervisor.last_generation))
    story.all_ready()
    story.retired_end()
    assert story.generations() == [story.supervisor.generation]
    story.advance(PROVED_MOLD_S + 1)
    assert story.supervisor.molds._backoff.rounds == 0


def test_a_new_mold_that_dies_while_workers_are_replaced_rolls_back() -> None:
    story = MoldStory(2).serve()
    story.hup()
    story.mold_ready(story.mold(2))
    story.holds_orders = True
    story.all_ready()
    assert story.supervisor.generation == 2
    story.holds_orders = False
    story.mold_ends(story.mold(2), "SIGKILL")
    assert story.said("rolled back: its mold ended: SIGKILL")
    story.retired_end()
    assert story.generations() == [1, 1]
    assert sorted(story.molds) == [1]


def test_the_old_mold_may_die_during_a_reload() -> None:
    story = MoldStory(2).serve()
    story.hup()
    story.mold_ends(story.mold(1), "SIGKILL")
    story.mold_ready(story.mold(2))
    story.all_ready()
    story.retired_end()
    assert story.generations() == [2, 2]
    assert len(story.took(actions.CheckConfig)) == 1


def test_a_mold_that_forks_nothing_is_killed() -> None:
    story = MoldStory(1).serve()
    story.holds_orders = True
    story.exits(story.newest(), -9, "SIGKILL")
    story.advance(1 + FORK_ORDER_S)
    assert story.took(actions.KillMold) == [actions.KillMold(1, "SIGKILL")]
    assert story.said("it has forked no worker for 10 s; killing it")
    story.mold_ends(story.mold(1), "SIGKILL")
    assert story.checking == 2


def test_a_worker_that_is_told_to_end_before_it_is_forked() -> None:
    story = MoldStory(1).serve()
    story.holds_orders = True
    story.signal("SIGTTIN")
    (order,) = story.orders
    story.signal("SIGTTOU")
    story.carries_out(order, "no process can be had")
    assert order.serial not in story.lives
    story.signal("SIGTTIN")
    (order,) = story.orders
    story.signal("SIGTTOU")
    story.carries_out(order)
    assert story.lives[order.serial] == ["spawned", "draining"]
    assert story.supervisor.backoff.rounds == 0


def test_a_stop_waits_for_an_order_that_is_under_way() -> None:
    story = MoldStory(1).serve()
    story.holds_orders = True
    story.signal("SIGTTIN")
    (order,) = story.orders
    story.signal("SIGTERM")
    story.exits(story.alive()[0])
    assert story.exit_code is None
    story.carries_out(order)
    story.says(story.newest(), msg.Draining())
    story.exits(story.newest())
    assert story.exit_code == 0


def test_an_order_that_takes_too_long_is_cancelled() -> None:
    story = MoldStory(1, boot_timeout_s=5.0).serve()
    story.holds_orders = True
    story.signal("SIGTTIN")
    story.advance(5)
    assert story.orders == []
    assert story.said("worker 2 (not forked yet): not ready after 5 s (boot_timeout)")
    assert 2 not in story.lives


def test_a_worker_that_a_stuck_mold_has_forked_is_not_killed() -> None:
    """Kept from an hour of chaos: the mold was stopped between the fork and its report."""
    story = MoldStory(1, boot_timeout_s=5.0).serve()
    story.holds_orders = True
    story.signal("SIGTTIN")
    (order,) = story.orders
    story.was_forked = order
    story.advance(5)
    worker = story.newest()
    assert worker.serial == order.serial
    assert isinstance(worker.asked, msg.Retire)
    story.says(worker, msg.Booting())
    story.says(worker, msg.Ready())
    story.advance(20)  # it has requests to finish
    assert not worker.ending
    story.says(worker, msg.Draining())
    story.exits(worker)
    assert story.said("not ready after 5 s (boot_timeout)")


def test_a_reload_may_switch_molds_on_and_off() -> None:
    story = Story(1).serve()
    story.hup(Policy(workers=1, preload=True))
    story.mold_ready(story.molds[2])
    story.all_ready()
    old, new = story.alive()
    story.exits(old)
    assert story.supervisor.generation == new.generation == 2
    story.hup(Policy(workers=1))
    story.all_ready()
    story.exits(new)
    assert [proc.generation for proc in story.alive()] == [3]
    assert story.molds == {}


def test_without_a_mold_nothing_is_reloaded_while_paused() -> None:
    story = MoldStory(1).serve()
    story.signal("SIGWINCH")
    story.exits(story.alive()[0])
    story.mold_ends(story.mold(1), "SIGKILL")
    story.advance(5)
    assert story.checking is None
    story.signal("SIGTTIN")
    assert story.checking == 2


def test_an_upgrade_keeps_the_mold_of_the_current_generation() -> None:
    story = MoldStory(2, bake_time_s=60.0).serve()
    story.hup()
    story.mold_ready(story.mold(2))
    story.retired_end()
    assert sorted(story.molds) == [1, 2]
    story.signal("SIGUSR2")
    story.preflight_ended(None)
    assert sorted(story.molds) == [2], "the other one ends with its program"
    assert story.supervisor.reload is not None
    story.exits(story.alive()[0], -9, "SIGKILL")
    story.advance(1)
    assert story.generations() == [2, 2], "it forks the successor during the reload"


def test_an_upgrade_keeps_no_mold_that_is_being_ended() -> None:
    story = MoldStory(1).serve()
    assert len(story.supervisor.molds.to_state(1)) == 1
    story.holds_orders = True
    story.exits(story.alive()[0], -9, "SIGKILL")
    story.advance(FORK_ORDER_S + 2)
    assert story.supervisor.molds.to_state(1) == []
    assert story.supervisor.molds.to_state(7) == []
