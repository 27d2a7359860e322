#!/usr/bin/env python3
"""Whole systems on a mount: a Debian run by chroot in which a package is installed, and a PostgreSQL. By hand, scripts/test-systems
brings what they need; without it they are skipped. DEBIAN_MIRROR: where debootstrap gets its packages."""
import glob
import os
import shutil
import subprocess
import tempfile
import unittest

from mounting import Mount, run_tests

POSTGRES = sorted(glob.glob('/usr/lib/postgresql/*/bin'))


def sh(words, **more):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, **more)
    if done.returncode != 0:
        raise AssertionError(f'{words} ended with {done.returncode}: {done.stdout[-2000:]}')
    return done.stdout


class Systems(unittest.TestCase):
    def mount(self):
        work = tempfile.mkdtemp(prefix='imafs-e2e-', dir='/var/tmp')
        os.chmod(work, 0o755)
        self.addCleanup(shutil.rmtree, work, ignore_errors=True)
        mount = Mount(work=work)
        mount.start()
        self.addCleanup(mount.__exit__)
        return mount

    @unittest.skipUnless(shutil.which('debootstrap') and os.environ.get('DEBIAN_MIRROR'), 'no debootstrap')
    def test_a_debian_is_made_and_a_package_installed_in_it(self):
        mount = self.mount()
        with open('/etc/os-release') as lines:
            release = next(line.split('=')[1].strip() for line in lines if line.startswith('VERSION_CODENAME='))
        sh(['debootstrap', '--variant=minbase', release, mount.path, os.environ['DEBIAN_MIRROR']])
        for name in ('proc', 'dev'):
            sh(['mount', '--rbind', '/' + name, f'{mount.path}/{name}'])
            self.addCleanup(subprocess.run, ['umount', '-l', f'{mount.path}/{name}'])
        environment = {'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'DEBIAN_FRONTEND': 'noninteractive', 'LANG': 'C'}
        sh(['chroot', mount.path, 'apt-get', '-qq', 'update'], env=environment)
        sh(['chroot', mount.path, 'apt-get', '-qq', 'install', '-y', '--no-install-recommends', 'jq', 'sudo'], env=environment)
        self.assertEqual('2\n', sh(['chroot', mount.path, 'jq', '-n', '1+1'], env=environment))
        sh(['chroot', mount.path, 'su', 'nobody', '-s', '/bin/sh', '-c', 'touch /tmp/by-nobody'], env=environment)
        self.assertEqual('nobody', sh(['chroot', mount.path, 'stat', '-c', '%U', '/tmp/by-nobody'], env=environment).strip())
        self.assertEqual('', sh(['chroot', mount.path, 'dpkg', '--audit'], env=environment))
        self.assertTrue(os.stat(mount.path + '/usr/bin/sudo').st_mode & 0o4000)
        for name in ('proc', 'dev'):
            sh(['umount', '-l', f'{mount.path}/{name}'])
        self.assertEqual('', sh(['rsync', '-n', '-aHAX', '--delete', '--checksum', '--itemize-changes', mount.path + '/', mount.backing + '/']))
        self.assertEqual(0, mount.verify().returncode)

    @unittest.skipUnless(POSTGRES, 'no PostgreSQL')
    def test_postgresql_makes_a_cluster_and_serves_pgbench(self):
        mount = self.mount()
        data = mount.path + '/data'
        os.mkdir(data)
        shutil.chown(data, 'postgres', 'postgres')
        run = lambda *words: sh(['setpriv', '--reuid=postgres', '--regid=postgres', '--init-groups', *words], cwd='/')
        run(POSTGRES[-1] + '/initdb', '-D', data, '--no-sync')
        with open(data + '/postgresql.conf', 'a') as conf:
            conf.write(f"\nlisten_addresses = ''\nunix_socket_directories = '{mount.work}'\nfsync = on\n")
        os.chmod(mount.work, 0o777)
        run(POSTGRES[-1] + '/pg_ctl', '-D', data, '-w', '-l', data + '/log', 'start')
        try:
            run(POSTGRES[-1] + '/pgbench', '-h', mount.work, '-i', '-s', '2', 'postgres')
            out = run(POSTGRES[-1] + '/pgbench', '-h', mount.work, '-c', '4', '-j', '2', '-T', '10', 'postgres')
            self.assertIn('number of failed transactions: 0', out)
            print([line for line in out.splitlines() if line.startswith('tps')], flush=True)
            before = run(POSTGRES[-1] + '/psql', '-h', mount.work, '-Atc', 'select sum(abalance), count(*) from pgbench_accounts', 'postgres')
        finally:
            run(POSTGRES[-1] + '/pg_ctl', '-D', data, '-w', '-m', 'immediate', 'stop')
        # A crash: what was committed is there again.
        run(POSTGRES[-1] + '/pg_ctl', '-D', data, '-w', '-l', data + '/log', 'start')
        after = run(POSTGRES[-1] + '/psql', '-h', mount.work, '-Atc', 'select sum(abalance), count(*) from pgbench_accounts', 'postgres')
        run(POSTGRES[-1] + '/pg_ctl', '-D', data, '-w', 'stop')
        self.assertEqual(before, after)
        self.assertEqual(0, mount.verify().returncode)


if __name__ == '__main__':
    run_tests()
