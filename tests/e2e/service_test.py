#!/usr/bin/env python3
"""Under a service manager: readiness, watchdog, the end, and messages with fields in the journal. The manager's sockets are
ours, in a mount namespace of our own."""
import os
import socket
import subprocess
import unittest

from mounting import IMAFS, Mount, in_private_mounts, run_tests

JOURNAL = '/run/systemd/journal/socket'


def fields_of(datagram):
    """The journal's native protocol: NAME=value lines, or NAME, a size in 8 bytes, and the value."""
    fields = {}
    while datagram:
        line, datagram = datagram.split(b'\n', 1)
        if b'=' in line:
            name, value = line.split(b'=', 1)
        else:
            name, size = line, int.from_bytes(datagram[:8], 'little')
            value, datagram = datagram[8:8 + size], datagram[9 + size:]
        fields[name.decode()] = value.decode()
    return fields


class Service(unittest.TestCase):
    def test_it_tells_its_manager_and_the_journal(self):
        with open('/proc/self/mountinfo') as mounts:
            self.assertIn(' /run ', mounts.read())  # ours
        os.makedirs(os.path.dirname(JOURNAL))
        journal, manager = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        journal.bind(JOURNAL)
        manager.bind('/run/notify')
        for one in (journal, manager):
            one.settimeout(20)
        mount = Mount()
        ours, theirs = socket.socketpair()
        about = os.fstat(theirs.fileno())
        daemon = subprocess.Popen([IMAFS, mount.path, '--backing', mount.backing, '--state', mount.state, '--foreground'], stderr=theirs,
                                  env={**os.environ, 'NOTIFY_SOCKET': '/run/notify', 'WATCHDOG_USEC': '400000',
                                       'JOURNAL_STREAM': f'{about.st_dev}:{about.st_ino}'})
        try:
            self.assertEqual(b'READY=1', manager.recv(100))
            self.assertEqual(b'WATCHDOG=1', manager.recv(100))
            with open(mount.backing + '/a name', 'w') as file:
                file.write('x')
            with open(mount.path + '/a name') as reader, open(mount.path + '/a name', 'a'):
                reader.read()
            fields = {}
            while fields.get('IMAFS_CAUSE') != 'ToMToU':
                fields = fields_of(journal.recv(65536))
            self.assertEqual(('imafs', '4', 'invalid_pcr', '/a name', 'python3', str(os.getuid())),
                             tuple(fields[name] for name in ('SYSLOG_IDENTIFIER', 'PRIORITY', 'IMAFS_OP', 'IMAFS_NAME', 'IMAFS_COMM', 'IMAFS_UID')))
            self.assertTrue(fields['MESSAGE'].startswith('integrity: '))
            # The manager stops the service.
            daemon.terminate()
            while manager.recv(100) != b'STOPPING=1':
                pass
            self.assertEqual(0, daemon.wait(20))
            self.assertFalse(os.path.ismount(mount.path))
        finally:
            daemon.kill()
            daemon.wait()
            for one in (journal, manager, ours, theirs):
                one.close()
            mount.__exit__()


if __name__ == '__main__':
    in_private_mounts()
    subprocess.run(['mount', '-t', 'tmpfs', 'none', '/run'], check=True)
    run_tests()
