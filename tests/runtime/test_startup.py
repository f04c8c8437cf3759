"""The collector rests while models load, and is then as it was, whoever comes out last and however."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from stillmotion.runtime.startup import collector_paused


def test_it_rests_in_the_block_and_works_after_it() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError), collector_paused(), collector_paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_what_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_of_several_threads_switches_it_on() -> None:
    barrier = Barrier(4)

    def load(_: int) -> None:
        for _ in range(50):
            barrier.wait()
            with collector_paused():
                assert not gc.isenabled()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))
    assert gc.isenabled()


def test_a_name_of_the_package_is_loaded_without_collections() -> None:
    code = "import gc, stillmotion; n = gc.get_stats()[2]['collections']; stillmotion.Animator; "
    code += "assert gc.get_stats()[2]['collections'] == n and gc.isenabled()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
