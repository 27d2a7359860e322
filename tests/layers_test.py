"""The four layers, read from the sources: includes point down only, and each C library stays behind its fence."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What a layer may include besides itself. The file system does not know the TPM, nor the TPM the file system.
BELOW = {'core': set(), 'tpm': {'core'}, 'fs': {'core'}, 'app': {'core', 'tpm', 'fs'}}

# Headers without a source of their name. pcr_extender.h is the seam: declared in core, implemented in tpm.
HEADERS = {
    'core': {'check.h', 'guarded.h', 'fd_reserve.h', 'result.h', 'unique_fd.h', 'worker_pool.h', 'pcr_extender.h', 'reaper.h'},
    'tpm': {'tpm_connection.h'},
    'fs': {'absent_names.h', 'descriptor_budget.h', 'directory_stream.h', 'file_system_kind.h', 'lanes.h', 'path_cache.h', 'unreserved.h'},
    'app': {'bounded_json.h', 'cli_attest.h', 'exit_code.h', 'version.h'},
}

# Who may include a C library or one that is heavy to compile; nobody else does.
FENCES = {
    'openssl/': {'bytes.cpp', 'digest.cpp', 'tpm_key.cpp'},
    'tss2/': {'unix_tcti.h', 'tpm_context.h', 'tpm_key.h', 'tpm_key.cpp', 'quote.cpp'},
    'fuse': {'fuse_ops.h', 'fuse_session.cpp'},
    'spdlog/': {'diag.cpp'},
    'CLI/': {'cli.cpp'},
    'seccomp': {'seccomp_filter.cpp'},
    'curses': {'cli_top.cpp'},
    'systemd/': {'diag.cpp', 'service_manager.cpp'},
}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+([<"])([^>"]+)[>"]', re.MULTILINE)


def layer_of_sources(cmake):
    """{source file name: layer}, as the targets in CMakeLists.txt have it."""
    layers = {}
    for target, sources in re.findall(r'add_(?:library|executable)\(imafs(?:_(\w+) STATIC)?\s([^)]*)\)', cmake):
        for source in re.findall(r'src/(\S+\.cpp)', sources):
            layers[source] = target or 'app'
    return layers


def private_headers(files, sources):
    """{header in src/ without a source of its name: the lowest layer that includes it}."""
    layers = {}
    for header in files:
        if header.suffix != '.h' or header.parent.name != 'src' or layer_of(header.name, sources):
            continue
        users = {sources.get(user.name) for user in files if f'"{header.name}"' in user.read_text()} - {None}
        if users:
            layers[header.stem + '.cpp'] = min(users, key=list(BELOW).index)
    return layers


def layer_of(name, sources):
    for layer, headers in HEADERS.items():
        if name in headers:
            return layer
    return sources.get(pathlib.PurePath(name).stem + '.cpp')


def main():
    sources = layer_of_sources((ROOT / 'CMakeLists.txt').read_text())
    files = sorted([*(ROOT / 'src').rglob('*.cpp'), *(ROOT / 'src').rglob('*.h'), *(ROOT / 'include').rglob('*.h')])
    listed = list(sources)
    sources |= private_headers(files, sources)
    faults = [f'{name} is in a target and not in src/' for name in listed if not list((ROOT / 'src').rglob(name))]
    checked = 0
    for file in files:
        where = file.relative_to(ROOT)
        layer = layer_of(file.name, sources)
        if layer is None:
            faults.append(f'{where}: belongs to no layer; list it in CMakeLists.txt, or a header without a source in this test')
            continue
        if layer == 'fs' and re.search(r'(?<!::)\bfuse_reply_\w+\(', file.read_text()):
            faults.append(f'{where}: replies past answer() in fuse_reply.h, which notes that the request has its answer')
        for quote, target in INCLUDE.findall(file.read_text()):
            name = target.rsplit('/', 1)[-1]
            if quote == '"':
                other = layer_of(name, sources)
                checked += 1
                if other is None:
                    faults.append(f'{where}: includes "{target}", which belongs to no layer')
                elif other != layer and other not in BELOW[layer]:
                    faults.append(f'{where}: {layer} may not include "{target}" of {other}')
            else:
                for prefix, allowed in FENCES.items():
                    if target.startswith(prefix) and file.name not in allowed:
                        faults.append(f'{where}: includes <{target}>, which is for {", ".join(sorted(allowed))}')
    if checked < 100:
        faults.append(f'only {checked} includes found: this test does not see the sources')
    for fault in faults:
        print(fault)
    print(f'{len(files)} files, {checked} includes of our own, {len(faults)} faults')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
