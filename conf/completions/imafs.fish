# fish completion of imafs(1)
set -l commands verify policy log quote ak manifest run report top
function __imafs_options
    set -l words (commandline -opc)
    set -l command
    if contains -- "$words[2]" verify policy log quote ak manifest run report top
        set command $words[2]
    end
    imafs $command --help 2>/dev/null | string match -ra -- '--[a-z][a-z-]*' | sort -u
end
complete -c imafs -n "not __fish_seen_subcommand_from $commands" -a "$commands"
complete -c imafs -n '__fish_seen_subcommand_from policy' -a 'check show load explain'
complete -c imafs -n '__fish_seen_subcommand_from log' -a trim
complete -c imafs -n 'string match -q -- "-*" (commandline -ct)' -a '(__imafs_options)'
complete -c imafs -l template -x -a 'ima ima-ng ima-sig ima-ngv2 ima-sigv2 ima-buf ima-modsig evm-sig'
complete -c imafs -l tpm -x -a 'auto none swtpm device'
complete -c imafs -l tpm-error -x -a 'deny continue'
complete -c imafs -l hash -x -a 'sha1 sha256 sha384 sha512'
complete -c imafs -n '__fish_seen_subcommand_from log' -l format -x -a 'text json ndjson csv cel-json'
complete -c imafs -n '__fish_seen_subcommand_from run' -l format -x -a 'in-toto slsa spdx text'
complete -c imafs -n '__fish_seen_subcommand_from manifest' -l format -x -a 'sha256sum keylime'
complete -c imafs -n '__fish_seen_subcommand_from quote' -l bank -x -a 'sha256 sha384 sha512 sha1'
