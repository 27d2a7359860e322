"""Kills a daemon at the entry of the k-th system call that its request threads make, whichever thread makes it: ptrace(2)."""
import ctypes
import os
import re
import signal
import subprocess
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long
SYSCALL, DETACH, SEIZE, INTERRUPT, SYSCALL_INFO = 24, 17, 0x4206, 0x4207, 0x420e
TRACESYSGOOD, TRACECLONE = 1, 8
WALL = 0x40000000  # __WALL: threads, too
ENTRY = 1
REQUEST_THREAD = 'fuse_worker\n'

# Waiting for work is not part of the path; futex and its like only reorder it.
IGNORED = {'rt_sigtimedwait', 'futex', 'restart_syscall', 'clock_nanosleep', 'exit', 'madvise', 'mprotect', 'mmap', 'munmap', 'brk',
           'clone3', 'set_robust_list', 'rseq', 'rt_sigprocmask', 'sched_yield', 'prctl', 'rt_sigreturn', 'sched_setaffinity'}


class Info(ctypes.Structure):
    _fields_ = [('op', ctypes.c_uint8), ('arch', ctypes.c_uint32), ('instruction', ctypes.c_uint64), ('stack', ctypes.c_uint64),
                ('number', ctypes.c_uint64), ('arguments', ctypes.c_uint64 * 6)]


def names_of_calls():
    text = subprocess.run(['gcc', '-E', '-dM', '-include', 'sys/syscall.h', '-x', 'c', '/dev/null'], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {int(number): name for name, number in re.findall(r'^#define __NR_(\w+) (\d+)$', text, re.M)}


NAMES = names_of_calls()


def ptrace(request, thread, address=0, data=0):
    return LIBC.ptrace(request, thread, address, data)


def request_threads(pid):
    for thread in map(int, os.listdir(f'/proc/{pid}/task')):
        with open(f'/proc/{pid}/task/{thread}/comm') as comm:
            if comm.read() == REQUEST_THREAD:
                yield thread


def kill_at(pid, position, work):
    """Runs `work` in a thread while `pid` is watched. The name of the call at whose entry it was killed; None: there were fewer."""
    threads = set(request_threads(pid))
    for thread in threads:
        if ptrace(SEIZE, thread, 0, TRACESYSGOOD | TRACECLONE) != 0:
            raise OSError(ctypes.get_errno(), f'ptrace of thread {thread}')
        ptrace(INTERRUPT, thread)
    for thread in threads:
        os.waitpid(thread, WALL)
        ptrace(SYSCALL, thread)
    waiting, count, killed, over = set(threads), 0, None, None
    worker = threading.Thread(target=work)
    while threads:
        try:
            thread, status = os.waitpid(-1, WALL | os.WNOHANG)
        except ChildProcessError:
            break
        if thread == 0:
            if not worker.is_alive():
                if worker.ident is None:
                    worker.start()  # all threads wait for requests
                elif over is None:
                    over = time.monotonic() + 0.05  # what follows the reply
                elif killed is None and time.monotonic() > over:
                    break
            time.sleep(0.00005)
            continue
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            threads.discard(thread)
            continue
        threads.add(thread)
        stop, deliver = os.WSTOPSIG(status), 0
        if stop == signal.SIGTRAP | 0x80:
            info = Info()
            ptrace(SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
            name = NAMES.get(info.number, str(info.number))
            if info.op == ENTRY and thread in waiting:
                waiting.discard(thread)  # the call it was waiting in when we came
            elif info.op == ENTRY and name not in IGNORED and killed is None:
                count += 1
                if count == position:
                    os.kill(pid, signal.SIGKILL)
                    killed = name
        elif status >> 16 == 0:
            deliver = stop
        ptrace(SYSCALL, thread, 0, deliver)
    for thread in threads:
        ptrace(INTERRUPT, thread)
    for thread in threads:
        try:
            os.waitpid(thread, WALL)
        except ChildProcessError:
            continue
        ptrace(DETACH, thread)
    worker.join()
    return killed
