#!/usr/bin/env python3
"""Writers outside the mount against readers of it, on each file system: no reader gets bytes of a state that has neither its own
entry nor a violation between its open and its end. ROUNDS reads on each (600; 10,000 by hand: ROUNDS=10000 races_test.py; KINDS
names the file systems). The control without leases and watch must find such a read on each of them, or the judge is blind."""
import bisect
import collections
import contextlib
import errno
import hashlib
import mmap
import multiprocessing
import os
import queue
import random
import statistics
import time
import unittest

from file_systems import KINDS, NotHere, file_system
from mounting import Mount, run_tests, skip_part
from writers import (EXT4_IOC_MOVE_EXT, XFS_IOC_EXCHANGE_RANGE, Impossible, clone, collapse, exchange_names, put, rewrite,
                     store_after_the_close, store_into_a_mapping, truncate_and_append, write_by_a_link)

ROUNDS = int(os.environ.get('ROUNDS', '600'))
SEED = int(os.environ.get('SEED', time.time_ns() % 100000))
SYSTEMS = os.environ.get('KINDS', ' '.join(KINDS)).split()
FILES = 3  # of each writer: who truncates kills who maps
CROWD = 40  # more of its files, whose leases are all broken at once
READERS = 2
WRITERS = 2


def states(writer):
    """Contents that nobody had before, of one to three pages, so that what is half old and half new is neither."""
    for number in range(1 << 30):
        yield f'{writer}.{number};'.encode() * random.randrange(200, 1500)


def truncate(path, data, _):
    os.truncate(path, len(data) // 2)


def empty_and_write(path, data, _):
    with open(path, 'wb') as file:
        file.write(data)


def map_what_grows(path, data, other):
    os.truncate(path, len(data))
    store_into_a_mapping(path, data, other)


def rename_over(path, data, other):
    put(other, data)
    os.rename(other, path)


def rename_and_back(path, data, other):
    os.rename(path, other)
    put(other, data)
    os.rename(other, path)


def link_over(path, data, other):
    """The second name that readers know becomes one of this file, or of the one that was just replaced."""
    os.link(path, other)
    os.rename(other, path + '.l')
    with contextlib.suppress(FileNotFoundError):
        os.unlink(other)  # rename(2) leaves it where both were names of one file
    put(path + '.l', data)


def exchange_with_second_name(path, data, _):
    exchange_names(path, data, path + '.x')


def move_parent(path, data, _):
    place, name = os.path.split(path)
    os.rename(place, place + '.moved')
    put(f'{place}.moved/{name}', data)
    time.sleep(random.random() * 0.002)
    os.rename(place + '.moved', place)


class BreakMany:
    """Opens many files without waiting for their readers: each open that is refused breaks a lease."""
    refused = 0

    def __call__(self, path, data, _):
        place = os.path.dirname(path)
        waiting = [f'{place}/c{n}{os.path.basename(place)}' for n in range(CROWD)]
        until = time.monotonic() + 60
        while waiting:
            still = []
            for name in waiting:
                try:
                    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
                except BlockingIOError:
                    self.refused += 1
                    still.append(name)
                    continue
                state = os.path.basename(name).encode() + b';' + data
                os.pwrite(fd, state, 0)
                os.ftruncate(fd, len(state))
                os.close(fd)
            waiting = still
            if time.monotonic() > until:
                raise AssertionError(f'leases stand for a minute: {waiting}')
            time.sleep(0.0005)


break_many = BreakMany()
EVERYWHERE = {'rewrite': rewrite, 'rewrite after truncation': truncate_and_append, 'empty and write': empty_and_write, 'truncate': truncate,
              'map what grows': map_what_grows, 'store into read pages': store_into_a_mapping, 'store after close': store_after_the_close,
              'rename over': rename_over, 'rename and back': rename_and_back, 'write by a link': write_by_a_link, 'link over': link_over,
              'exchange names': exchange_with_second_name, 'move parent': move_parent, 'break many leases': break_many}
SOMEWHERE = {'ext4': {'exchange blocks': EXT4_IOC_MOVE_EXT, 'collapse': collapse},
             'xfs': {'exchange blocks': XFS_IOC_EXCHANGE_RANGE, 'clone': clone, 'collapse': collapse}, 'btrfs': {'clone': clone}}


def ways_on(kind, tree):
    """The ways to write that this kernel has on this file system."""
    ways, path = dict(EVERYWHERE), tree + '/probe'
    for name, way in SOMEWHERE.get(kind, {}).items():
        put(path, b'first' * 4096)
        try:
            way(path, b'second', path + '.other')
            ways[name] = way
        except Impossible as why:
            skip_part(f'{name} on {kind}', why)
    return ways


Read = collections.namedtuple('Read', 'first last file digest state begun ended')  # first, last: entries in the log at the open and the end
Written = collections.namedtuple('Written', 'way file state begun ended')


def file_of(name):
    """A file has several names, in several directories; all begin alike."""
    return os.path.basename(name).split('.')[0]


def write_on(backing, number, seed, ways, stop, answers):
    """Answers how long opens for writing took, what was written, and how many opens met a lease."""
    random.seed(seed * 1000 + number)
    opens, done, turn = [], [], []
    for data in states(number):
        if stop.is_set() and len(opens) >= len(ways):  # each way once, however slow the machine is
            break
        path = f'{backing}/d{number}/f{number}{random.randrange(FILES)}'
        begun = time.monotonic()
        fd = os.open(path, os.O_WRONLY)
        opens.append(time.monotonic() - begun)
        os.close(fd)
        turn = turn or random.sample(list(ways), len(ways))
        way = turn.pop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + '.other')
        with contextlib.suppress(Impossible):  # somebody reads just now
            ways[way](path, data, path + '.other')
            done.append(Written(way, os.path.basename(path), data[:data.index(b';')], begun, time.monotonic()))
        time.sleep(random.random() * 0.004)
    answers.put((opens, done, break_many.refused))


def read_on(mount, number, seed, rounds, results):
    random.seed(seed * 2000 + number)
    seen = []
    with open(f'{mount}/.ima/runtime_measurements_count') as count:
        def entries():
            return int(os.pread(count.fileno(), 20, 0))

        while len(seen) < rounds:
            writer = random.randrange(WRITERS)
            name = f'f{writer}{random.randrange(FILES)}{random.choice(("", "", "", ".l", ".x"))}'
            if random.random() < 0.3:
                name = f'c{random.randrange(CROWD)}d{writer}'
            first, begun = entries(), time.monotonic()
            try:
                with open(f'{mount}/d{writer}{random.choice(("", "", "", ".moved"))}/{name}', 'rb') as file:
                    time.sleep(random.choice((0, 0.0005, 0.003)))
                    data = file.read()
                    seen.append(Read(first, entries(), file_of(name), hashlib.sha256(data).hexdigest(), data[:16], begun, time.monotonic()))
            except FileNotFoundError:
                continue
    results.put(seen)


def unaccounted(lines, reads):
    """The reads whose bytes have no entry of that file, while no violation of it was logged between their open and their end either."""
    entries, violations = set(), collections.defaultdict(list)
    for index, words in enumerate(lines):
        name = file_of(words[4].decode())
        if set(words[1]) == {ord('0')}:
            violations[name].append(index)
        else:
            entries.add((name, words[3].decode().split(':')[1]))
    return [read for read in reads if (read.file, read.digest) not in entries and
            bisect.bisect_left(violations[read.file], read.first) == bisect.bisect_left(violations[read.file], read.last)]


Outcome = collections.namedtuple('Outcome', 'silent reads opens done refused')


def races(kind, seed, rounds, *options):
    """What happens in so many reads: those that nothing in the log accounts for, and what the writers did."""
    context = multiprocessing.get_context('fork')
    with file_system(kind) as work, Mount(*options, work=work) as mount:
        ways = ways_on(kind, mount.backing)
        for writer in range(WRITERS):
            os.mkdir(f'{mount.backing}/d{writer}')
            for name in [f'f{writer}{i}{end}' for i in range(FILES) for end in ('', '.l', '.x')] + [f'c{i}d{writer}' for i in range(CROWD)]:
                put(f'{mount.backing}/d{writer}/{name}', b'first of ' + name.encode())
        stop, answers, results = context.Event(), context.Queue(), context.Queue()
        writers = [context.Process(target=write_on, args=(mount.backing, i, seed, ways, stop, answers)) for i in range(WRITERS)]
        readers = [context.Process(target=read_on, args=(mount.path, i, seed, rounds // READERS, results)) for i in range(READERS)]
        for process in writers + readers:
            process.start()
        try:
            reads = [read for _ in readers for read in results.get(timeout=60 + rounds / 10)]
            stop.set()
            written = [answers.get(timeout=60) for _ in writers]
        except queue.Empty as error:
            raise AssertionError('a reader or a writer does not answer') from error
        finally:
            for process in writers + readers:
                process.terminate()
                process.join()
        lines = [line.split(b' ') for line in mount.control('measurements').split(b'\n') if line]
        if mount.verify().returncode != 0:
            raise AssertionError('the log does not replay to the PCR')
    done = [one for _, moves, _ in written for one in moves]
    return Outcome(unaccounted(lines, reads), len(reads), [wait for opens, _, _ in written for wait in opens], done,
                   sum(refused for _, _, refused in written))


def explained(outcome):
    """The silent reads, each with what was written to its file meanwhile."""
    return [(read, [one for one in outcome.done if one.file == read.file and one.ended > read.begun - 0.02 and one.begun < read.ended])
            for read in outcome.silent]


class Races(unittest.TestCase):
    def on_each(self, rounds, *options):
        for kind in SYSTEMS:
            with self.subTest(file_system=kind, seed=SEED):
                try:
                    outcome = races(kind, SEED, rounds, *options)
                except NotHere as why:
                    skip_part(kind, why)
                    continue
                counts = collections.Counter(one.way for one in outcome.done)
                print(f'{kind} {" ".join(options)}: seed {SEED}, {outcome.reads} reads, {len(outcome.silent)} silent; {len(outcome.done)} writes, '
                      f'{min(counts.values())} or more of each of {len(counts)} ways, {outcome.refused} opens met a lease; opens: median '
                      f'{statistics.median(outcome.opens) * 1000:.2f} ms, p99 {statistics.quantiles(outcome.opens, n=100)[98] * 1000:.1f} ms, '
                      f'longest {max(outcome.opens) * 1000:.0f} ms', flush=True)
                self.assertEqual([], explained(outcome))
                self.assertGreaterEqual(outcome.reads, rounds // READERS * READERS)
                self.assertLessEqual(set(EVERYWHERE), set(counts))
                if rounds == ROUNDS:
                    self.assertGreater(outcome.refused, 0)
                self.assertLess(statistics.median(outcome.opens), 0.05)

    def test_no_read_is_without_its_entry_or_a_violation(self):
        self.on_each(ROUNDS)

    def test_nor_one_through_the_daemon(self):
        self.on_each(ROUNDS // 2, '--no-passthrough')

    def test_no_program_runs_unlogged_that_was_just_written(self):
        """execve(2) while the writer closes: who is refused is refused, and what runs is in the log."""
        with Mount('--policy', 'builtin:tcb') as mount, mmap.mmap(-1, 4096) as flag, open('/bin/true', 'rb') as program:
            text, ran = program.read(), {}
            for number in range(200):
                path = f'{mount.path}/{number}'
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755)
                os.write(fd, text + b'%d' % number)
                flag[0] = 0
                child = os.fork()
                if child == 0:
                    try:
                        os.close(fd)
                        flag[0] = 1
                        os.execv(path, [path])
                    except OSError as error:
                        os._exit(error.errno)
                while not flag[0]:
                    pass
                until = time.monotonic() + number * 2e-6
                while time.monotonic() < until:
                    pass
                os.close(fd)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                self.assertIn(status, (0, errno.ETXTBSY))
                if status == 0:
                    ran[f'/{number}'] = 'sha256:' + hashlib.sha256(text + b'%d' % number).hexdigest()
            logged = {(name.decode(), digest.decode()) for digest, name in mount.log()}
            self.assertEqual([], sorted(set(ran.items()) - logged))
            self.assertGreater(len(ran), 0)
            mount.settle()
            self.assertEqual(0, mount.status()['counters']['imafs_inline_hashes'])

    def test_without_leases_and_watch_the_same_judge_finds_one(self):
        for kind in SYSTEMS:
            with self.subTest(file_system=kind):
                try:
                    found = any(races(kind, SEED + attempt, 400, '--no-leases', '--no-watch').silent for attempt in range(5))
                    self.assertTrue(found, 'reads without leases and watch, and each was accounted for')
                except NotHere as why:
                    skip_part(kind, why)


if __name__ == '__main__':
    run_tests()
