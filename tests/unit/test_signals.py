"""How a process hears that it is to stop."""

import os
import signal
import threading

import pytest

from refsam.system import signals


def tell(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_interrupts_at_once_and_says_which_it_was(number):
    with signals.listening(), pytest.raises(KeyboardInterrupt, match=number.name):
        tell(number)
    assert signals.received() is number


def test_one_word_is_enough():
    with signals.listening():
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGUSR2)
        tell(signal.SIGTERM)  # while the run saves what it has
        assert signals.received() is signal.SIGUSR2


def test_what_is_held_is_finished_first():
    done = []
    with signals.listening():
        signals.hold()
        tell(signal.SIGTERM)
        done.append("changed")
        with pytest.raises(KeyboardInterrupt):
            signals.release()
    assert done == ["changed"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_was_lost_comes_again_at_the_next_check():
    class Deleted:
        def __del__(self):
            tell(signal.SIGTERM)  # Python drops what is raised here

    with signals.listening():
        one = Deleted()
        del one
        assert signals.received() is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signals.check()


def test_a_signal_that_came_while_it_was_blocked_is_heard():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # other threads do not block it
        with pytest.raises(KeyboardInterrupt), signals.listening():
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_afterwards_everything_is_as_before():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.listening(), signals.listening():
        pass
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_another_thread_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with signals.listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
