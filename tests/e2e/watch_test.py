#!/usr/bin/env python3
"""Names and attributes that the kernel keeps: it does not ask again for what nobody changed, and what is changed beside
the mount shows within the timeout all the same."""
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

from mounting import FUSE_GETATTR, Mount, late, need_mounts, seen_within, skip_part

TIMEOUT = 1.0  # --timeout's default
SLACK = 0.25   # of a busy machine


def write(path, data=b'data'):
    with open(path, 'wb') as file:
        file.write(data)


@contextlib.contextmanager
def own_file_system(kind='tmpfs'):
    """Where it is mounted; None: this machine cannot (no loop devices)."""
    with tempfile.TemporaryDirectory(prefix='imafs-e2e-') as work:
        directory, image = make(work + '/root'), work + '/image'
        source = ['none']
        if kind != 'tmpfs':
            write(image)
            os.truncate(image, 400 << 20)
            subprocess.run(['mkfs.' + kind, '-q', image], check=True, stdout=subprocess.DEVNULL)
            source = ['-o', 'loop', image]
        mounted = subprocess.run(['mount', '-t', kind, *source, directory], check=kind == 'tmpfs').returncode == 0
        try:
            yield directory if mounted else None
        finally:
            if mounted:
                subprocess.run(['umount', directory], check=True)


def make(directory):
    os.mkdir(directory)
    return directory


def attributes(path):
    try:
        attr = os.lstat(path)
    except FileNotFoundError:
        return None
    return (attr.st_ino, attr.st_mode, attr.st_nlink, attr.st_uid, attr.st_size, attr.st_mtime_ns, attr.st_ctime_ns)


def calls_during(pid, work):
    """How many requests the daemon reads while `work` runs."""
    trace = subprocess.Popen(['strace', '-f', '-p', str(pid), '-e', 'trace=writev', '-o', '/dev/stdout'], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    time.sleep(1)
    work()
    time.sleep(0.3)
    trace.terminate()
    return sum('writev(' in line for line in trace.communicate()[0].splitlines())


CHANGES = {
    'chmod': lambda tree: os.chmod(tree + '/file', 0o600),
    'chown': lambda tree: os.chown(tree + '/file', 1, 1),
    'times': lambda tree: os.utime(tree + '/file', (1, 1)),
    'append': lambda tree: write(tree + '/file', b'longer than before'),
    'truncate': lambda tree: os.truncate(tree + '/file', 1),
    'link': lambda tree: os.link(tree + '/file', tree + '/link'),
    'unlink': lambda tree: os.unlink(tree + '/file'),
    'rename away': lambda tree: os.rename(tree + '/file', tree + '/other'),
    'rename over': lambda tree: (write(tree + '/new', b'new'), os.rename(tree + '/new', tree + '/file')),
    'create': lambda tree: write(tree + '/missing'),
    'mkdir': lambda tree: os.mkdir(tree + '/missing'),
    'symlink': lambda tree: os.symlink('file', tree + '/missing'),
    'rename a directory': lambda tree: os.rename(tree + '/dir', tree + '/moved'),
    'create below': lambda tree: write(tree + '/dir/missing'),
    'remove below': lambda tree: os.unlink(tree + '/dir/file'),
}


def check_changes_on(faults, kind):
    with own_file_system(kind) as directory:
        if directory is None:
            skip_part(kind, 'cannot be mounted here')
        else:
            check_changes(faults, backing=make(directory + '/tree'))


def check_changes(faults, *options, backing=None):
    paths = ['', '/file', '/missing', '/link', '/other', '/dir', '/dir/file', '/dir/missing', '/moved', '/moved/file']

    def look(directory):
        return [attributes(directory + path) for path in paths], sorted(os.listdir(directory))

    with Mount('--tpm', 'none', *options, backing=backing) as mount:
        if '--no-watch' not in options and not mount.status()['counters']['imafs_changes_are_told']:
            faults.append(f'{backing}: changes are not told')
        for name in CHANGES:
            os.makedirs(f'{mount.backing}/{name}/dir')
            write(f'{mount.backing}/{name}/file')
            write(f'{mount.backing}/{name}/dir/file')
        for _ in range(2):
            for name in CHANGES:
                look(f'{mount.path}/{name}')
            time.sleep(TIMEOUT + 0.2)  # what was made a moment ago is not kept for long yet
        for name, change in CHANGES.items():
            look(f'{mount.path}/{name}')
            change(f'{mount.backing}/{name}')
        time.sleep(TIMEOUT + SLACK)
        for name in CHANGES:
            want, got = look(f'{mount.backing}/{name}'), look(f'{mount.path}/{name}')
            if got != want:
                faults.append(f'{options}, {backing}: {name}: {got} and not {want}')


def check_writer(faults):
    """A writer beside the mount that goes on: its file is never seen older than the timeout."""
    with Mount('--tpm', 'none') as mount:
        path = mount.backing + '/growing'
        write(path, b'')
        history = []  # (when, size)
        done = threading.Event()

        def grow():
            with open(path, 'ab', buffering=0) as file:
                while not done.is_set():
                    file.write(b'x')
                    history.append((time.monotonic(), os.fstat(file.fileno()).st_size))
                    time.sleep(0.001)
        writer = threading.Thread(target=grow)
        writer.start()
        view = mount.path + '/growing'
        worst = 0
        for _ in range(400):
            now = time.monotonic()
            size = os.stat(view).st_size
            behind = [when for when, was in history[:] if was > size]
            if behind:
                worst = max(worst, now - behind[0])
            time.sleep(0.01)
        done.set()
        writer.join()
        if worst > TIMEOUT + SLACK:
            faults.append(f'a size was shown {worst:.2f} s after it had changed')
        want = attributes(path)
        if seen_within(lambda: attributes(view), want, TIMEOUT + SLACK) != want:
            faults.append('the last size was not shown')


def check_lost(faults):
    """More changes than the kernel keeps for us (16,384): what came after them shows nevertheless, and what is mounted in
    the tree, or works in it, stays."""
    with Mount('--tpm', 'none') as mount, contextlib.ExitStack() as stack:
        os.mkdir(mount.backing + '/many')
        os.mkdir(mount.backing + '/mounted')
        subprocess.run(['mount', '-t', 'tmpfs', 'none', mount.path + '/mounted'], check=True)
        stack.callback(subprocess.run, ['umount', '--quiet', mount.path + '/mounted'])
        worker = stack.enter_context(subprocess.Popen(['sh', '-c', 'read _ && pwd -P'], cwd=mount.path + '/many', stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        write(mount.backing + '/file')
        view = mount.path + '/file'
        for _ in range(2):
            attributes(view), attributes(mount.path + '/missing')
            time.sleep(TIMEOUT + 0.2)
        pid = mount.daemon_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            for i in range(20000):
                os.close(os.open(f'{mount.backing}/many/{i}', os.O_CREAT | os.O_WRONLY))
            os.chmod(mount.backing + '/file', 0o600)
            write(mount.backing + '/missing')
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(TIMEOUT + SLACK)
        for name in ('/file', '/missing'):
            if attributes(mount.path + name) != attributes(mount.backing + name):
                faults.append(f'{name} is shown as it was before many changes')
        if not os.path.ismount(mount.path + '/mounted'):
            faults.append('what was mounted in the tree is gone after many changes')
        if worker.communicate(b'\n')[0].decode().strip() != mount.path + '/many':
            faults.append('who worked in a directory of the tree has lost it after many changes')


def check_mapped(faults):
    """Times that a store into a mapping moves show at once, though nothing tells the kernel of them."""
    with Mount('--tpm', 'none') as mount:
        path = mount.path + '/mapped'
        write(mount.backing + '/mapped', bytes(8192))
        mtime = lambda: os.stat(path).st_mtime_ns
        for closed in (False, True):
            time.sleep(TIMEOUT + 0.2)
            times = [mtime()]
            fd = os.open(path, os.O_RDWR)
            area = mmap.mmap(fd, 8192)
            if closed:
                os.close(fd)
            for _ in range(2):
                time.sleep(0.05)
                area[0] = 1
                times.append(mtime())
                area.flush()  # the page is clean again: the next store moves the times again
            area.close()
            if not closed:
                os.close(fd)
            if len(set(times)) != len(times):
                faults.append(f'closed={closed}: times after stores: {times}')


def check_blocks(faults):
    """A file that is deleted beside the mount gives its blocks back, though it was read through it a moment ago."""
    with own_file_system() as image:
        with Mount('--tpm', 'none', backing=image) as mount:
            write(image + '/big', bytes(8 << 20))
            with open(mount.path + '/big', 'rb') as file:
                file.read()
            mount.settle()
            used = lambda: os.statvfs(image).f_blocks - os.statvfs(image).f_bfree
            before = used()
            os.unlink(image + '/big')
            want = before - (8 << 20) // os.statvfs(image).f_frsize
            if seen_within(used, want, TIMEOUT + SLACK) != want:
                faults.append(f'{used()} blocks are still used, {before} were')


def check_kept(faults):
    """After the timeout nothing is asked for again; without the watch, it is. On a file system that nobody else changes."""
    for options, kept in (((), True), (('--no-watch',), False)):
        with own_file_system() as image, Mount('--tpm', 'none', *options, backing=image) as mount:
            os.mkdir(mount.backing + '/dir')
            for i in range(50):
                write(f'{mount.backing}/dir/{i}')

            def look():
                for i in range(50):
                    os.stat(f'{mount.path}/dir/{i}')
                    attributes(f'{mount.path}/dir/missing-{i}')
            time.sleep(TIMEOUT + 0.2)
            look()
            time.sleep(TIMEOUT + 0.2)
            calls = calls_during(mount.daemon_pid(), look)
            if (calls < 5) != kept:
                faults.append(f'{options}: {calls} requests for 100 names that were asked for before')
            if mount.status()['counters']['imafs_changes_are_told'] != int(kept):
                faults.append(f'{options}: status says otherwise')


def check_directories(faults, *options):
    """A directory that another one takes the place of, beside the mount: whoever has it open finds it empty, as in the tree itself,
    and the name shows the new one within the timeout. No call fails meanwhile."""
    with Mount('--tpm', 'none', *options) as mount:
        for number in range(20):
            directory, name = f'{mount.backing}/{number}', f'{mount.path}/{number}'
            write(make(directory) + '/old')
            held = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if number % 2:
                    os.listdir(held)
                os.unlink(directory + '/old')
                os.rmdir(directory)
                write(make(directory) + '/new')
                for listed, shows in ((name, ['new']), (held, [])):
                    got = seen_within(lambda listed=listed: os.listdir(listed), shows, TIMEOUT + SLACK)
                    if got != shows:
                        faults.append(f'{options}: {listed} shows {got} instead of {shows}')
            except OSError as error:
                faults.append(f'{options}: {error}')
            finally:
                os.close(held)


def check_end(faults):
    """Changes are told while the mount ends: a clean end (under ThreadSanitizer: nobody speaks to a closed descriptor)."""
    for number, ends in enumerate((lambda mount, daemon: daemon.send_signal(signal.SIGTERM),
                                   lambda mount, daemon: subprocess.run(['umount', '-l', mount.path], check=True)) * 3):
        mount = Mount('--tpm', 'none')
        daemon = subprocess.Popen([*mount.command(), '--foreground'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        over = threading.Event()

        def change():
            i = 0
            while not over.is_set():
                i += 1
                write(f'{mount.backing}/{i % 100}', b'%d' % i)
                os.unlink(f'{mount.backing}/{i % 100}')

        changer = threading.Thread(target=change)
        try:
            if not seen_within(lambda: os.path.ismount(mount.path), True, 20):
                faults.append('the mount did not begin')
            changer.start()
            for i in range(100):
                attributes(f'{mount.path}/{i}')
            time.sleep(0.1 + number * 0.02)
            ends(mount, daemon)
            if daemon.wait(20) != 0:
                faults.append(f'the end of a mount whose tree changes: {daemon.returncode}')
        finally:
            over.set()
            changer.join()
            daemon.kill()
            mount.__exit__()


def check_first_use(faults):
    """Who comes first may enter the root, also while the kernel is told that it changed."""
    with late(FUSE_GETATTR, 100) as prefix, Mount(prefix=prefix) as mount:
        os.chmod(mount.work, 0o755)
        os.chmod(mount.backing, 0o755)
        write(mount.backing + '/f')
        time.sleep(0.02)  # the kernel is told 50 ms after the change, in the middle of the answer
        done = subprocess.run(['setpriv', '--reuid', '1234', '--clear-groups', 'cat', mount.path + '/f'], stdout=subprocess.PIPE)
        if done.stdout != b'data':
            faults.append('the first who comes may not enter the root')


def main():
    need_mounts()
    faults = []
    check_changes(faults)
    check_changes(faults, '--no-passthrough')
    check_changes(faults, '--no-watch')
    # File handles differ, and what they say of the inode.
    for kind in ('ext4', 'tmpfs', 'xfs', 'btrfs'):
        check_changes_on(faults, kind)
    check_writer(faults)
    check_kept(faults)
    check_directories(faults)
    check_directories(faults, '--no-watch')
    check_blocks(faults)
    check_mapped(faults)
    check_lost(faults)
    check_end(faults)
    check_first_use(faults)
    for fault in faults:
        print(fault)
    print(f'{len(faults)} faults')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
