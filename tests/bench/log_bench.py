#!/usr/bin/env python3
"""Long logs: 1,000,000 entries with PCRs in memory, 100,000 with a swtpm through a mount; numbers and a plot.

    log_bench.py IMAFS MEASUREMENT_LOG_TEST OPS [--write DOCS]
"""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ENTRIES = 100_000


def in_memory(program):
    out = subprocess.run([program, '[.benchmark]'], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {words[0]: float(words[1]) for line in out.splitlines() if len(words := line.split(' ')) == 2 and words[0].islower() and '_' in words[0]}


def resident(pid):
    with open(f'/proc/{pid}/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith('VmRSS'))


def with_swtpm(imafs, ops):
    work = tempfile.mkdtemp(prefix='imafs-log-bench-')
    tree, mount, state = work + '/tree', work + '/mount', work + '/state'
    results = {}
    try:
        os.makedirs(mount)
        subprocess.run(['mount', '--mkdir', '-t', 'tmpfs', 'none', tree], check=True)
        for i in range(ENTRIES):
            if i % 1000 == 0:
                os.makedirs(f'{tree}/{i // 1000}')
            with open(f'{tree}/{i // 1000}/{i}', 'w') as file:
                file.write(str(i))
        words = [imafs, mount, '--backing', tree, '--state', state, '--tpm', 'swtpm']
        subprocess.run(words, check=True)
        with open(state + '/lock') as lock:
            pid = int(lock.read())
        before = resident(pid)
        at = 0
        for end in (100, 1000, 5000, 10_000, 50_000, 100_000):
            # The last up to 1,000 before each milestone are timed.
            start = max(at, end - 1000)
            for first, last, timed in ((at, start, False), (start, end, True)):
                if first == last:
                    continue
                with open(work + '/list', 'w') as names:
                    names.writelines(f'{mount}/{i // 1000}/{i}\n' for i in range(first, last))
                seconds = float(subprocess.run([ops, 'each-read', work + '/list'], check=True, stdout=subprocess.PIPE, text=True).stdout)
                if timed:
                    results[f'open_us_at_{end}'] = seconds / (last - first) * 1e6
            at = end
        results['resident_bytes_an_entry'] = (resident(pid) - before) / ENTRIES
        size = 0
        begin = time.monotonic()
        with open(mount + '/.ima/measurements', 'rb') as log:
            while part := log.read(1 << 20):
                size += len(part)
        results['text_view_mb_s'] = size / 1e6 / (time.monotonic() - begin)
        os.kill(pid, signal.SIGKILL)
        subprocess.run(['umount', '-l', mount], check=True)
        begin = time.monotonic()
        subprocess.run(words, check=True)
        results['start_s'] = time.monotonic() - begin
        subprocess.run([imafs, 'verify', mount], check=True, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run(['umount', '-l', mount], stderr=subprocess.DEVNULL)
        time.sleep(1)
        subprocess.run(['umount', '-l', tree], stderr=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)
    return results


def plot(memory, swtpm):
    """Both curves on logarithmic axes: entries, microseconds."""
    left, top, width, height = 60, 20, 560, 260
    x = lambda entries: left + (math.log10(entries) - 2) / 4 * width
    y = lambda us: top + height - math.log10(max(us, 1)) / 3 * height
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {top + height + 50}" font-family="sans-serif" font-size="12">',
           '<style>text{fill:#222}.grid{stroke:#ccc}path{fill:none;stroke-width:2}.a{stroke:#2563a8}.b{stroke:#b4501e}'
           '@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.a{stroke:#6ea8e6}.b{stroke:#e69a6e}}</style>']
    for power in range(2, 7):
        out.append(f'<line class="grid" x1="{x(10 ** power):.0f}" x2="{x(10 ** power):.0f}" y1="{top}" y2="{top + height}"/>'
                   f'<text x="{x(10 ** power):.0f}" y="{top + height + 18}" text-anchor="middle">{10 ** power:,}</text>')
    for power in range(4):
        out.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y(10 ** power):.0f}" y2="{y(10 ** power):.0f}"/>'
                   f'<text x="{left - 8}" y="{y(10 ** power) + 4:.0f}" text-anchor="end">{10 ** power} us</text>')
    for kind, prefix, values in (('a', 'append_us_at_', memory), ('b', 'open_us_at_', swtpm)):
        points = sorted((int(name[len(prefix):]), value) for name, value in values.items() if name.startswith(prefix))
        path = ' L'.join(f'{x(entries):.1f},{y(us):.1f}' for entries, us in points)
        out.append(f'<path class="{kind}" d="M{path}"/>')
    out.append(f'<text x="{left}" y="{top + height + 40}">entries in the log; lower: an append, PCRs in memory; upper: first open, hash and extend with a swtpm</text>')
    return '\n'.join(out) + '\n</svg>\n'


def main(arguments):
    results = {'in memory': in_memory(arguments[1]), 'swtpm': with_swtpm(os.path.abspath(arguments[0]), os.path.abspath(arguments[2]))}
    print(json.dumps(results, indent=1))
    if '--write' in arguments:
        docs = arguments[arguments.index('--write') + 1]
        with open(docs + '/log.json', 'w') as file:
            json.dump(results, file, indent=1)
        with open(docs + '/log.svg', 'w') as file:
            file.write(plot(results['in memory'], results['swtpm']))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
