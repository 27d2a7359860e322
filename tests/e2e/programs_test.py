"""Programs that live on a mount do what they do on the plain tree."""
import os
import sqlite3
import subprocess
import unittest

from mounting import Mount, run_tests

C_SOURCE = '#include <stdio.h>\n#include "part.h"\nint main(void) { printf("%d\\n", part(20)); return 0; }\n'
PART = 'int part(int n) { return n * 2; }\n'
MAKEFILE = 'main: main.o part.o\n\tcc -o $@ main.o part.o\n%.o: %.c part.h\n\tcc -c -o $@ $<\nclean:\n\trm -f main *.o\n'


def run(*words, **more):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more).stdout


def make_project(directory):
    os.makedirs(directory)
    for name, text in (('main.c', C_SOURCE), ('part.c', PART), ('part.h', 'int part(int n);\n'), ('Makefile', MAKEFILE)):
        with open(f'{directory}/{name}', 'w') as file:
            file.write(text)


class Programs(unittest.TestCase):
    options = ()

    def compare(self, one, other):
        """Contents, owners, modes, times, links, ACLs and attributes of two trees."""
        self.assertEqual('', run('rsync', '-n', '-aHAX', '--checksum', '--delete', '--itemize-changes', one + '/', other + '/'))

    def both(self, work):
        """Runs `work(directory)` on the mount and on a plain twin; yields nothing, compares what remains."""
        with Mount(*self.options) as mount:
            twin = mount.work + '/twin'
            os.mkdir(twin)
            results = [work(directory) for directory in (mount.path, twin)]
            self.assertEqual(*results)
            self.assertEqual(0, mount.verify().returncode)

    def test_git(self):
        def work(directory):
            make_project(directory + '/origin')
            identity = ['-c', 'user.name=n', '-c', 'user.email=e', '-c', 'commit.gpgsign=false']
            dates = dict(os.environ, GIT_AUTHOR_DATE='2020-01-01T00:00:00Z', GIT_COMMITTER_DATE='2020-01-01T00:00:00Z')
            run('git', 'init', '-q', '-b', 'main', directory + '/origin')
            run('git', '-C', directory + '/origin', 'add', '.')
            run('git', '-C', directory + '/origin', *identity, 'commit', '-q', '-m', 'all', env=dates)
            run('git', 'clone', '-q', directory + '/origin', directory + '/copy')
            run('git', '-C', directory + '/copy', 'fsck', '--strict')
            self.assertEqual('', run('git', '-C', directory + '/copy', 'status', '--porcelain'))
            return run('git', '-C', directory + '/copy', 'log', '--format=%H')
        self.both(work)

    def test_make(self):
        def work(directory):
            make_project(directory + '/project')
            run('make', '-j2', '-C', directory + '/project')
            first = run(directory + '/project/main')
            self.assertIn('up to date', run('make', '-C', directory + '/project'))
            with open(directory + '/project/part.c', 'a') as file:
                file.write('int more;\n')
            rebuilt = run('make', '-C', directory + '/project')
            self.assertIn('part.o', rebuilt)
            return first, run(directory + '/project/main')
        self.both(work)

    def test_sqlite(self):
        def work(directory):
            database = sqlite3.connect(directory + '/db')
            database.execute('pragma journal_mode=wal')
            database.execute('create table t (a integer primary key, b text)')
            for i in range(300):
                database.execute('insert into t values (?, ?)', (i, 'x' * i))
                if i % 50 == 0:
                    database.commit()
            database.commit()
            database.execute('delete from t where a % 3 = 0')
            database.commit()
            database.execute('vacuum')
            result = database.execute('select count(*), sum(length(b)) from t').fetchall()
            check = database.execute('pragma integrity_check').fetchall()
            database.close()
            return result, check
        self.both(work)

    def test_tar_and_rsync_round_trips(self):
        with Mount(*self.options) as mount:
            source = mount.work + '/source'
            make_project(source)
            os.makedirs(source + '/deep/er')
            os.symlink('main.c', source + '/link')
            os.link(source + '/main.c', source + '/deep/hard')
            os.mkfifo(source + '/fifo')
            os.chmod(source + '/part.c', 0o4711)
            os.chown(source + '/part.h', 12, 34)
            os.setxattr(source + '/Makefile', 'user.colour', b'blue')
            run('setfacl', '-m', 'u:7:rw', source + '/Makefile')
            run('setfacl', '-d', '-m', 'g:8:rx', source + '/deep')
            with open(source + '/sparse', 'wb') as file:
                file.truncate(10 << 20)
                file.seek(5 << 20)
                file.write(b'data')
            run('rsync', '-aHAXS', source + '/', mount.path + '/by-rsync/')
            self.compare(source, mount.path + '/by-rsync')
            self.compare(source, mount.backing + '/by-rsync')
            run('tar', '--acls', '--xattrs', '-C', mount.path + '/by-rsync', '-cf', mount.path + '/all.tar', '.')
            os.mkdir(mount.path + '/by-tar')
            run('tar', '--acls', '--xattrs', '--xattrs-include=*', '-C', mount.path + '/by-tar', '-xpf', mount.path + '/all.tar')
            self.compare(source, mount.path + '/by-tar')
            self.assertLess(os.stat(mount.path + '/by-rsync/sparse').st_blocks, 1000)
            self.assertEqual(0, mount.verify().returncode)


class ProgramsWithoutPassthrough(Programs):
    options = ('--no-passthrough',)


if __name__ == '__main__':
    run_tests()
