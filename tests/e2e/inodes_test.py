#!/usr/bin/env python3
"""What a mount takes of the machine. Many inodes: walked by find, read by 8 processes; memory an inode, descriptors, and what is
left when the kernel forgets (FILES: 30,000; FILES=1000000 by hand). Processors: kept awake only while requests come quickly."""
import contextlib
import os
import struct
import subprocess
import time
import unittest

from mounting import Mount, run_tests, seen_within

FILES = int(os.environ.get('FILES', '30000'))
WAKE_LATENCY = '/dev/cpu_dma_latency'


def resident(pid):
    with open(f'/proc/{pid}/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith('VmRSS'))


def descriptors(pid):
    return len(os.listdir(f'/proc/{pid}/fd'))


def opened(pid):
    names = set()
    for fd in os.listdir(f'/proc/{pid}/fd'):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.add(os.readlink(f'/proc/{pid}/fd/{fd}'))
    return names


def allowed_latency(device):
    """Microseconds a processor may take to wake up: the least that anybody asked for."""
    return struct.unpack('i', os.pread(device, 4, 0))[0]


def sleeps_soon(device):
    """Whether processors may sleep, at once or when other mounts of this machine have paused."""
    return seen_within(lambda: allowed_latency(device) != 0, True, 10)


class Inodes(unittest.TestCase):
    def test_a_walk_costs_memory_by_the_inode_and_no_descriptors(self):
        # A million journal entries are another test's: here nothing is measured.
        with Mount('--policy', 'builtin:none') as mount:
            for i in range(FILES):
                if i % 1000 == 0:
                    os.mkdir(f'{mount.backing}/{i // 1000}')
                os.close(os.open(f'{mount.backing}/{i // 1000}/{i}', os.O_CREAT | os.O_WRONLY))
            pid = mount.daemon_pid()
            with open(mount.path + '/0/0'):
                pass
            base = resident(pid)
            subprocess.run(['find', mount.path, '-size', '+1', '-newer', mount.path], check=True)
            known = mount.status()['counters']['imafs_known_inodes']
            each = (resident(pid) - base) / max(known, 1)
            readers = [subprocess.Popen(f'find {mount.path} -type f -path "*{digit}" -print0 | xargs -0 cat', shell=True) for digit in range(8)]
            most = 0
            while any(reader.poll() is None for reader in readers):
                most = max(most, descriptors(pid))
                time.sleep(0.01)
            self.assertEqual([0] * 8, [reader.returncode for reader in readers])
            print(f'{known} inodes known: {each:.0f} bytes each; at most {most} descriptors', flush=True)
            self.assertGreater(known, FILES * 0.9)
            self.assertLessEqual(most, 2000)
            if FILES >= 100000:  # below, what the allocator keeps in reserve counts for more
                self.assertLessEqual(each, 300)
            with open('/proc/sys/vm/drop_caches', 'w') as control:
                control.write('2')
            for _ in range(100):
                if mount.status()['counters']['imafs_known_inodes'] < 100 and descriptors(pid) < 100:
                    break
                time.sleep(0.2)
            self.assertLess(mount.status()['counters']['imafs_known_inodes'], 100)
            self.assertLess(descriptors(pid), 100)

    def test_few_descriptors_are_enough_for_many_files(self):
        def read(view, i):
            with open(f'{view}/{i}', 'rb') as file:
                return file.read()

        for limit in ('512:512', '512:4096'):
            with Mount(prefix=['prlimit', f'--nofile={limit}']) as mount:
                for i in range(2000):
                    with open(f'{mount.backing}/{i}', 'w') as file:
                        file.write(str(i))
                for _ in range(3):  # what comes back is kept, if there is room
                    for i in range(2000):
                        self.assertEqual(b'%d' % i, read(mount.path, i))
                held = [open(f'{mount.path}/{i}', 'rb') for i in range(350)]
                try:
                    for i in range(2000):
                        read(mount.path, i)
                finally:
                    for file in held:
                        file.close()
                self.assertEqual(0, mount.verify().returncode)

    def test_what_is_asked_of_files_that_others_close_is_not_asked_of_another(self):
        program = '''
import os, random
for turn in range(6000):
    i = random.randrange(600)
    path = f"{directory}/{i}"
    if worker > 1:
        os.close(os.open(path, os.O_RDWR if turn % 4 == 0 else os.O_RDONLY))
        continue
    i = i // 2 * 2 + worker  # each changes its own
    path = f"{directory}/{i}"
    mode = 0o600 | random.randrange(64)
    os.chmod(path, mode)
    found = os.stat(path)
    assert (found.st_mode & 0o777, found.st_size) == (mode, i), (found, mode, i)
    assert os.getxattr(path, "user.name") == str(i).encode()
'''
        with Mount(prefix=['prlimit', '--nofile=512:512']) as mount:
            for i in range(600):
                with open(f'{mount.backing}/{i}', 'w') as file:
                    file.write('x' * i)
                os.setxattr(f'{mount.backing}/{i}', 'user.name', b'%d' % i)
            pid = mount.daemon_pid()
            busy = [subprocess.Popen(['python3', '-c', f'worker, directory = {worker}, "{mount.path}"' + program]) for worker in range(4)]
            self.assertEqual([0] * 4, [one.wait() for one in busy])
            mount.settle()
            with open('/proc/sys/vm/drop_caches', 'w') as control:
                control.write('2')
            self.assertTrue(seen_within(lambda: descriptors(pid) < 100, True, 20), descriptors(pid))

    def test_directories_that_are_read_in_turns_cost_few_descriptors(self):
        with Mount('--policy', 'builtin:none') as mount:
            names = [f'a-name-of-some-length-{i}' for i in range(250)]
            for number in range(100):
                os.mkdir(f'{mount.backing}/{number}')
                for name in names:
                    os.symlink('x', f'{mount.backing}/{number}/{name}')
            base = descriptors(mount.daemon_pid())
            with contextlib.ExitStack() as stack:
                readers = [stack.enter_context(os.scandir(f'{mount.path}/{number}')) for number in range(100)]
                seen = [[] for _ in readers]
                for _ in names:
                    for reader, found in zip(readers, seen):
                        found.append(next(reader).name)
                most = descriptors(mount.daemon_pid()) - base
                self.assertEqual([[]] * 100, [list(reader) for reader in readers])
            for found in seen:
                self.assertEqual(sorted(names), sorted(found))
            print(f'{most} descriptors more', flush=True)
            self.assertLess(most, 350)

    @unittest.skipUnless(os.path.exists(WAKE_LATENCY) and os.cpu_count() <= 8, 'imafs lets processors sleep here')
    def test_processors_stay_awake_while_requests_come_quickly_and_no_longer(self):
        with Mount('--no-low-latency') as mount:
            self.assertNotIn(WAKE_LATENCY, opened(mount.daemon_pid()))
        with contextlib.ExitStack() as stack:
            device = os.open(WAKE_LATENCY, os.O_RDONLY)
            stack.callback(os.close, device)
            mount = stack.enter_context(Mount())
            with open(mount.backing + '/f', 'w') as file:
                file.write('content')
            self.assertIn(WAKE_LATENCY, opened(mount.daemon_pid()))
            self.assertTrue(sleeps_soon(device), 'at rest')
            seen, end = set(), time.monotonic() + 1
            while time.monotonic() < end:
                for _ in range(50):
                    os.close(os.open(mount.path + '/f', os.O_RDONLY))
                seen.add(allowed_latency(device))
            self.assertIn(0, seen)
            self.assertTrue(sleeps_soon(device), 'after the last request')


if __name__ == '__main__':
    run_tests()
