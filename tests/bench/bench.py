#!/usr/bin/env python3
"""imafs against the tree it shows and libfuse's passthrough_hp, in one interleaved run.

    bench.py IMAFS PASSTHROUGH_HP [--rounds N] [--only PREFIX,...] [--scratch DIR] [--write DOCS]

Every round measures each of the three once for each test, in an order that rotates; a ratio is that of the same round.
What is printed is the median of the ratios and their quartiles. imafs has its default policy, and every file is measured
before (but for "first touch"). --write puts bench.json and bench.svg into DOCS.
"""
import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
SMALL_FILES, BIG_MIB, WRITE_MIB, REPO_FILES = 4000, 256, 128, 4000

# name: (limit of imafs / plain, limit of imafs / hp), as the project promises.
LIMITS = {
    'read 1 MiB blocks': (1.15, 1.0), 'read 4 KiB at random': (1.15, 1.0), 'read by mmap': (1.15, 1.0),
    'write 1 MiB blocks': (1.35, 1.0), 'write 4 KiB blocks': (1.5, 0.25), 'overwrite 4 KiB at random': (1.5, 0.25),
    'open, read, close 4,000 files': (6.5, 1.0), 'the same, caches dropped': (2.5, 1.0),
    'stat': (1.1, 1.0), 'find': (1.5, 1.0), 'git status': (1.5, 1.0),
    'tar c': (4, 0.8), 'tar x': (2.5, 0.8), 'rm -rf': (2.5, 0.8), 'gcc -c': (1.5, 1.0), 'run a program': (1.6, 1.0),
}


def sh(words, **more):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    if done.returncode != 0:
        raise RuntimeError(f'{words} ended with {done.returncode}: {done.stderr.decode(errors="replace")[-300:]}')
    return done.stdout.decode(errors='replace')


def timed(words, **more):
    before = time.monotonic()
    sh(words, **more)
    return time.monotonic() - before


def make_repository(directory):
    """Commits all files in it, and lets git(1) see that none has changed since."""
    git = ['git', '-C', directory, '-c', 'user.name=bench', '-c', 'user.email=bench@example.org', '-c', 'gc.auto=0']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'files']):
        sh(git + words)
    time.sleep(1.1)
    sh(git + ['update-index', '-q', '--really-refresh'])


def drop_caches(what=3):
    with open('/proc/sys/vm/drop_caches', 'w') as file:
        file.write(str(what))


def touch_memory():
    """What is written soon finds memory that the host of a virtual machine has given already: else each page waits for the host,
    and 128 MiB take 30 ms or 300."""
    memory = b'x' * (256 * MIB)
    del memory


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(data)


class Bench:
    def __init__(self, imafs, peer, scratch):
        self.imafs, self.peer, self.scratch = imafs, peer, scratch
        self.ops_program = scratch + '/ops'
        sh(['gcc', '-O2', '-o', self.ops_program, HERE + '/ops.c'])
        self.tree = scratch + '/tree'
        self.views = {'plain': self.tree, 'hp': scratch + '/hp', 'imafs': scratch + '/imafs'}
        self.daemons = []
        self.cleared = 0
        for view in self.views.values():
            os.makedirs(view)

    # ---- the three views

    def mount(self):
        self.daemons.append(subprocess.Popen([self.peer, '--foreground', '--nosplice', self.tree, self.views['hp']], stdout=subprocess.DEVNULL,
                                             stderr=subprocess.DEVNULL))
        sh([self.imafs, self.views['imafs'], '--backing', self.tree, '--state', self.scratch + '/state'])
        for _ in range(100):
            if os.path.ismount(self.views['hp']):
                return
            time.sleep(0.05)
        raise RuntimeError('passthrough_hp did not mount')

    def unmount(self):
        for name in ('hp', 'imafs'):
            subprocess.run(['umount', '-l', self.views[name]], stderr=subprocess.DEVNULL)
        for daemon in self.daemons:
            daemon.terminate()
            daemon.wait()

    def ops(self, name, target, *numbers):
        return float(sh([self.ops_program, name, target, *map(str, numbers)]))

    # ---- the data

    def fill(self):
        block = os.urandom(MIB)
        write(self.tree + '/big', b''.join(i.to_bytes(8, 'big') + block[8:] for i in range(BIG_MIB)))
        names = [f'small/{i // 100}/{i}' for i in range(SMALL_FILES)]
        for i, name in enumerate(names):
            write(f'{self.tree}/{name}', i.to_bytes(8, 'big') + block[i:i + 4088])
        random.Random(1).shuffle(names)
        self.lists = {}
        for view, path in self.views.items():
            self.lists[view] = f'{self.scratch}/list.{view}'
            write(self.lists[view], '\n'.join(f'{path}/{name}' for name in names).encode() + b'\n')
            write(f'{self.scratch}/work.{view}', '\n'.join(f'{path}/work.{view}/{i}' for i in range(1000)).encode() + b'\n')
            os.makedirs(f'{self.tree}/work.{view}')
        multiarch = sh(['gcc', '-print-multiarch']).strip()
        for name in os.listdir('/usr/include'):
            path, target = '/usr/include/' + name, self.tree + '/include/' + name
            if os.path.isfile(path):
                os.makedirs(self.tree + '/include', exist_ok=True)
                shutil.copy(path, target)
            elif name in ('c++', 'linux', 'asm-generic', 'netinet', 'openssl', multiarch):
                shutil.copytree(path, target, symlinks=True, ignore_dangling_symlinks=True)
        shutil.copy(os.path.realpath('/bin/true'), self.tree + '/true')
        headers = 'stdio stdlib string unistd errno fcntl pthread signal time sys/stat sys/socket dirent math poll'.split()
        for i in range(4):
            write(f'{self.tree}/source/{i}.c', ''.join(f'#include <{header}.h>\n' for header in headers).encode() + b'int f(int a) { return puts("x") + a; }\n')
        sh(['tar', 'cf', self.scratch + '/include.tar', '-C', self.tree, 'include'])
        repository = self.tree + '/repository'
        for i in range(REPO_FILES):
            write(f'{repository}/{i // 100}/{i}', b'line %d\n' % i * 20)
        make_repository(repository)
        sh(['sync'])

    # ---- the tests: name -> (prepare or None, measure), each called with the view's name

    def tests(self):
        path = lambda view, name: f'{self.views[view]}/{name}'
        work = lambda view, name: f'{self.views[view]}/work.{view}/{name}'

        def gcc(view, count=4):
            include = path(view, 'include')
            inside = sh(['gcc', '-print-file-name=include']).strip()
            multiarch = sh(['gcc', '-print-multiarch']).strip()
            return sum(timed(['gcc', '-nostdinc', '-isystem', inside, '-isystem', include, '-isystem', f'{include}/{multiarch}', '-c', '-o',
                              work(view, 'out.o'), path(view, f'source/{i}.c')]) for i in range(count))

        def untar(view):
            return timed(['tar', 'xf', self.scratch + '/include.tar', '-C', work(view, '')])

        def clear(view):
            """Moves away what was made. Deleting many files would slow down who makes files next: ext4 without a journal looks at
            each inode that was deleted in the last minutes before it uses another."""
            with contextlib.suppress(FileNotFoundError):
                os.unlink(work(view, 'file'))
            self.cleared += 1
            away = path(view, f'cleared.{self.cleared}')
            os.rename(work(view, ''), away)
            os.mkdir(work(view, ''))

        def clear_tree(view):
            clear(view)
            drop_caches(2)  # or passthrough_hp runs out of descriptors
            sh(['cat', self.scratch + '/include.tar'])

        tar = lambda view: timed(f"tar cf - -C '{self.views[view]}' include | cat >/dev/null", shell=True)
        big = lambda view: path(view, 'big')
        files = lambda view: f'{self.scratch}/work.{view}'
        twice = lambda measure: (measure, measure)
        return {
            'read 1 MiB blocks': twice(lambda view: self.ops('read', big(view), MIB)),
            'read 4 KiB at random': twice(lambda view: self.ops('read-random', big(view), 50000)),
            'read by mmap': twice(lambda view: self.ops('read-mapped', big(view))),
            'write 1 MiB blocks': (clear, lambda view: self.ops('write', work(view, 'file'), WRITE_MIB * MIB, MIB)),
            'write 4 KiB blocks': (clear, lambda view: self.ops('write', work(view, 'file'), WRITE_MIB // 4 * MIB, 4096)),
            'overwrite 4 KiB at random': (lambda view: self.ops('write', work(view, 'file'), 64 * MIB, MIB),
                                          lambda view: self.ops('write-random', work(view, 'file'), 20000)),
            'make 1,000 files of 4 KiB': (clear, lambda view: self.ops('each-write', files(view))),
            'unlink them': (lambda view: self.ops('each-write', files(view)), lambda view: self.ops('each-unlink', files(view))),
            'open, read, close 4,000 files': twice(lambda view: self.ops('each-read', self.lists[view])),
            'the same, caches dropped': (lambda view: drop_caches(), lambda view: self.ops('each-read', self.lists[view])),
            'stat': twice(lambda view: self.ops('each-stat', self.lists[view])),
            'find': twice(lambda view: timed(['find', path(view, 'small'), '-printf', '%s'])),
            'git status': twice(lambda view: timed(['git', '-C', path(view, 'repository'), 'status', '--porcelain'])),
            'tar c': twice(tar),
            'tar x': (clear_tree, untar),
            'rm -rf': (lambda view: (clear_tree(view), untar(view)), lambda view: timed(['rm', '-rf', work(view, 'include')])),
            'gcc -c': (lambda view: gcc(view, 1), gcc),
            'run a program': (lambda view: self.ops('run', path(view, 'true'), 10), lambda view: self.ops('run', path(view, 'true'), 100)),
        }

    def run(self, rounds, only):
        results = {}
        for name, (prepare, measure) in self.tests().items():
            if only and not any(name.startswith(prefix) for prefix in only):
                continue
            seconds = {view: [] for view in self.views}
            drop_caches()  # or passthrough_hp runs out of descriptors
            for number in range(rounds):
                order = list(self.views)
                order = order[number % 3:] + order[:number % 3]
                for view in order:
                    if prepare:
                        prepare(view)
                    # Or whoever finds the others' pages still dirty, or what was deleted not yet freed, waits for the disk.
                    time.sleep(0.05)
                    os.sync()
                    if prepare is not measure:  # what only reads again what it has just read wants it in the processors' caches
                        touch_memory()
                    seconds[view].append(measure(view))
            results[name] = summary(name, seconds)
            print(line_of(name, results[name]), flush=True)
        return results

    # ---- first touch: what measuring costs

    def first_touch(self, rounds):
        """20,000 files nobody has read yet, against the sum of what it is made of, in the same round."""
        count = 20000
        results = {'1 reader': [], '8 readers': [], 'sum of parts': [], 'open of 1 GiB': [], 'openssl of 1 GiB': []}
        directory = self.tree + '/touch'
        for number in range(rounds):
            shutil.rmtree(directory, ignore_errors=True)
            for i in range(count):
                write(f'{directory}/{i // 500}/{i}', number.to_bytes(8, 'big') + i.to_bytes(8, 'big') + bytes(4080))
            write(self.tree + '/gigabyte', b'')
            with open(self.tree + '/gigabyte', 'wb') as file:
                for i in range(1024):
                    file.write((number * 5000 + i).to_bytes(8, 'big') + os.urandom(64) * 16383 + bytes(56))
            lists = {}
            for view in ('hp', 'imafs'):
                for part in range(8):
                    lists[view, part] = f'{self.scratch}/touch.{view}.{part}'
                    write(lists[view, part], ''.join(f'{self.views[view]}/touch/{i // 500}/{i}\n' for i in range(count) if i % 8 == part).encode())
                lists[view, None] = f'{self.scratch}/touch.{view}'
                # passthrough_hp has a descriptor for each file it knows, and the limit is 20,000: half of them, twice the time.
                some = count if view == 'imafs' else count // 2
                write(lists[view, None], ''.join(f'{self.views[view]}/touch/{i // 500}/{i}\n' for i in range(some)).encode())
            drop_caches()
            self.ops('each-read', self.write_list(directory, count))
            parts = 2 * self.ops('each-read', lists['hp', None]) + self.parts_of(count)
            results['sum of parts'].append(parts)
            results['1 reader'].append(self.ops('each-read', lists['imafs', None]))
            # As new again, by other contents.
            for i in range(count):
                write(f'{directory}/{i // 500}/{i}', b'8' + number.to_bytes(7, 'big') + i.to_bytes(8, 'big') + bytes(4080))
            before = time.monotonic()
            readers = [threading.Thread(target=self.ops, args=('each-read', lists['imafs', part])) for part in range(8)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            results['8 readers'].append(time.monotonic() - before)
            self.ops('read', self.tree + '/gigabyte', MIB)
            results['openssl of 1 GiB'].append(timed(['openssl', 'dgst', '-sha256', self.tree + '/gigabyte']))
            before = time.monotonic()
            os.close(os.open(self.views['imafs'] + '/gigabyte', os.O_RDONLY))
            results['open of 1 GiB'].append(time.monotonic() - before)
        paired = lambda one, other: statistics.median(a / b for a, b in zip(results[one], results[other]))
        table = {
            '20,000 new files, 1 reader / sum of parts': (paired('1 reader', 'sum of parts'), 1.3),
            'the same, 8 readers / 1 reader': (paired('8 readers', '1 reader'), 0.7),
            '1 GiB cached, open / openssl dgst': (paired('open of 1 GiB', 'openssl of 1 GiB'), 1.1),
        }
        for name, (value, limit) in table.items():
            print(f'{name:44} {value:6.2f}  (goal {limit})', flush=True)
        return {'seconds': results, 'table': {name: value for name, (value, limit) in table.items()}, 'limits': {name: limit for name, (value, limit) in table.items()}}

    # ---- large: one file of gigabytes, 100,000 small ones

    def large(self, rounds):
        """A cold file of 1 GiB; how long others' opens take while 4 GiB are hashed; a tree that passthrough_hp has no descriptors for."""
        ratios = {'cold 1 GiB, open / plain read': [], 'the same, open and read / plain read': []}
        for number in range(rounds):
            with open(self.tree + '/gigabyte', 'r+b') as file:
                file.write(os.urandom(16))  # as new
            sh(['sync'])
            seconds = {}
            for view in ('plain', 'imafs') if number % 2 else ('imafs', 'plain'):
                drop_caches()
                before = time.monotonic()
                descriptor = os.open(self.views[view] + '/gigabyte', os.O_RDONLY)
                opened = time.monotonic() - before
                while os.read(descriptor, MIB):
                    pass
                os.close(descriptor)
                seconds[view] = opened, time.monotonic() - before
            for name, spent in zip(ratios, seconds['imafs']):
                ratios[name].append(spent / seconds['plain'][1])
        table = {name: (statistics.median(values), limit) for (name, values), limit in zip(ratios.items(), (1.25, None))}

        measured = [f"{self.views['imafs']}/small/{i // 100}/{i}" for i in range(1000)]
        for path in measured:
            os.close(os.open(path, os.O_RDONLY))
        later = []
        for number in range(rounds):
            with open(self.tree + '/four', 'wb') as file:
                file.write(os.urandom(16))
                file.truncate(4096 * MIB)
            before = latencies(measured, lambda: False)
            reader = threading.Thread(target=lambda: os.close(os.open(self.views['imafs'] + '/four', os.O_RDONLY)))
            reader.start()
            during = latencies(measured, lambda: not reader.is_alive())
            reader.join()
            later.append(percentile(during, 99) - percentile(before, 99))
        table['while 4 GiB are hashed, p99 of an open: ms more'] = (statistics.median(later) * 1000, 2)

        repository = self.tree + '/large'
        for i in range(100000):
            write(f'{repository}/{i // 500}/{i}', b'%d' % i)
        make_repository(repository)
        for name, words in (('find', ['find', 'VIEW', '-printf', '%s']), ('git status', ['git', '-C', 'VIEW', 'status', '--porcelain'])):
            seconds = {}
            for view in ('plain', 'imafs', 'hp'):
                here = [word.replace('VIEW', self.views[view] + '/large') for word in words]
                try:
                    timed(here)
                    seconds[view] = statistics.median(timed(here) for _ in range(3))
                except RuntimeError:
                    seconds[view] = None  # EMFILE
            table[f'{name} of 100,000 files, warm, imafs / plain'] = (seconds['imafs'] / seconds['plain'], None)
            print(f"{name} of 100,000 files with passthrough_hp: {'works' if seconds['hp'] else 'fails'}", flush=True)
        for name, (value, limit) in table.items():
            print(f'{name:52} {value:6.2f}  {"" if limit is None else f"(goal {limit})"}', flush=True)
        return {name: value for name, (value, limit) in table.items()}

    def write_list(self, directory, count):
        path = self.scratch + '/touch.plain'
        write(path, ''.join(f'{directory}/{i // 500}/{i}\n' for i in range(count)).encode())
        return path

    def parts_of(self, count):
        """Reading and hashing `count` files of 4 KiB, their template digests, and as many extends, by openssl(1) and tpm2-tss."""
        speed = sh(['openssl', 'speed', '-mr', '-seconds', '1', '-bytes', '4096', '-evp', 'sha256'])
        hash_rate = float([line for line in speed.splitlines() if line.startswith('+F:')][0].split(':')[-1])
        short = sh(['openssl', 'speed', '-mr', '-seconds', '1', '-bytes', '100', '-evp', 'sha256'])
        short_rate = float([line for line in short.splitlines() if line.startswith('+F:')][0].split(':')[-1])
        extend = float(sh([os.environ['IMAFS_EXTEND_BENCH'], '2000']))  # seconds for one
        return count * (4096 / hash_rate + 4 * 100 / short_rate + extend)


def latencies(paths, is_over):
    """Seconds that opening each of `paths` takes, one after the other, until all are done or it is over."""
    spent = []
    for path in paths:
        before = time.perf_counter()
        descriptor = os.open(path, os.O_RDONLY)
        spent.append(time.perf_counter() - before)
        os.close(descriptor)
        time.sleep(0.0005)
        if is_over():
            break
    return spent


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def summary(name, seconds):
    result = {'seconds': seconds}
    for reference in ('plain', 'hp'):
        ratios = [a / b for a, b in zip(seconds['imafs'], seconds[reference])]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        result['to ' + reference] = [statistics.median(ratios), quartiles[0], quartiles[2]]
    result['hp to plain'] = statistics.median(a / b for a, b in zip(seconds['hp'], seconds['plain']))
    return result


def line_of(name, result):
    plain, hp = result['to plain'], result['to hp']
    limits = LIMITS.get(name)
    verdict = '' if not limits else 'holds' if plain[0] <= limits[0] and hp[0] <= limits[1] else 'MISSED'
    promised = f'(<= {limits[0]}, {limits[1]})' if limits else ''
    return (f'{name:32} {plain[0]:6.2f} [{plain[1]:.2f}-{plain[2]:.2f}] of plain {hp[0]:6.2f} [{hp[1]:.2f}-{hp[2]:.2f}] of hp; '
            f'hp {result["hp to plain"]:.2f} of plain {promised} {verdict}')


def chart(results):
    """Bars on a logarithmic axis: imafs and passthrough_hp, in times of the plain tree."""
    import math
    row, left, width = 30, 230, 420
    scale = lambda ratio: max(0.0, min(1.0, (math.log2(max(ratio, 0.25)) + 2) / 7)) * width
    height = row * len(results) + 60
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="sans-serif" font-size="12">',
           '<style>text{fill:#222}.grid{stroke:#ccc}.imafs{fill:#2563a8}.hp{fill:#b0b7c0}'
           '@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.imafs{fill:#6ea8e6}.hp{fill:#5b636d}}</style>',
           f'<text x="{left}" y="16">time in times of the plain tree (shorter is better); blue imafs, grey passthrough_hp</text>']
    for power in range(-2, 6):
        x = left + scale(2.0 ** power)
        label = str(2 ** power) if power >= 0 else f'1/{2 ** -power}'
        out.append(f'<line class="grid" x1="{x:.0f}" x2="{x:.0f}" y1="26" y2="{height - 28}"/><text x="{x:.0f}" y="{height - 12}" text-anchor="middle">{label}</text>')
    for number, (name, result) in enumerate(results.items()):
        y = 32 + number * row
        out.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{name}</text>')
        for offset, kind, ratio in ((2, 'imafs', result['to plain'][0]), (13, 'hp', result['hp to plain'])):
            out.append(f'<rect class="{kind}" x="{left}" y="{y + offset}" width="{scale(ratio):.1f}" height="9"/>'
                       f'<text x="{left + scale(ratio) + 4:.1f}" y="{y + offset + 9}" font-size="9">{ratio:.2f}</text>')
    return '\n'.join(out) + '\n</svg>\n'


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('imafs')
    parser.add_argument('peer')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--only', default='')
    parser.add_argument('--scratch')
    parser.add_argument('--no-first-touch', action='store_true')
    parser.add_argument('--write')
    options = parser.parse_args()
    scratch = tempfile.mkdtemp(prefix='imafs-bench-', dir=options.scratch)
    bench = Bench(os.path.abspath(options.imafs), os.path.abspath(options.peer), scratch)
    try:
        bench.fill()
        bench.mount()
        results = bench.run(options.rounds, [prefix for prefix in options.only.split(',') if prefix])
        first = large = None
        if not options.no_first_touch:
            first = bench.first_touch(max(3, options.rounds // 2))
            large = bench.large(max(3, options.rounds // 2))
    finally:
        bench.unmount()
        shutil.rmtree(scratch, ignore_errors=True)
    if options.write:
        about = {'kernel': platform.release(), 'cpus': os.cpu_count(), 'date': time.strftime('%Y-%m-%d'), 'rounds': options.rounds}
        with open(options.write + '/bench.json', 'w') as file:
            json.dump({'about': about, 'tests': results, 'first touch': first, 'large': large}, file, indent=1)
        with open(options.write + '/bench.svg', 'w') as file:
            file.write(chart(results))
    return 0


if __name__ == '__main__':
    sys.exit(main())
