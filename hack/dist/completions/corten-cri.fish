# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_corten_cri_global_optspecs
    string join \n config= root= state= listen= h/help V/version
end

function __fish_corten_cri_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_corten_cri_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_corten_cri_using_subcommand
    set -l cmd (__fish_corten_cri_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c corten-cri -n "__fish_corten_cri_needs_command" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_needs_command" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_needs_command" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_needs_command" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_needs_command" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -s V -l version -d 'Print version'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "config" -d 'Looks after the configuration'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "image" -d 'Looks after the images of the running server'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "doctor" -d 'Says what is wrong with this machine, what it means and how to mend it; a server need not run'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "status" -d 'Shows how the running server is: pods, containers, images, memory, disk, conditions, recent failures'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "support-bundle" -d 'Writes an archive of all that helps to find a fault, without secrets'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "why" -d 'Tells why a container ended'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "network" -d 'Looks after the built-in network of the running server'
complete -c corten-cri -n "__fish_corten_cri_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -f -a "default" -d 'Prints the default configuration, with every key explained'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -f -a "check" -d 'Prints what is wrong with the configuration, each mistake with file, line, key, rule and value; fails if anything is'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -f -a "show" -d 'Prints every key with its value and who has set it'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -f -a "reload" -d 'Has the running server read its configuration again, as SIGHUP does'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and not __fish_seen_subcommand_from default check show reload help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from default" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from default" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from default" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from default" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from default" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from check" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from check" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from check" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from check" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l running -d 'What the running server goes by, instead of what the files say'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l json -d 'As JSON instead of TOML'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -l toml -d 'As TOML, with the rest as comments: the default'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from reload" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from reload" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from reload" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from reload" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from reload" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "default" -d 'Prints the default configuration, with every key explained'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "check" -d 'Prints what is wrong with the configuration, each mistake with file, line, key, rule and value; fails if anything is'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "show" -d 'Prints every key with its value and who has set it'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "reload" -d 'Has the running server read its configuration again, as SIGHUP does'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "pull" -d 'Pulls an image and prints its id'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "list" -d 'Lists the images'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "inspect" -d 'Prints everything about an image'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "remove" -d 'Removes images, each under all of its names'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "import" -d 'Imports an OCI layout (a directory or an archive) or what `docker save` wrote; archives may be packed with gzip or zstd'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "export" -d 'Writes an image as an archive of an OCI layout'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "check" -d 'Compares the records of images and layers with what is on disk; fails if something is wrong'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "prune" -d 'Removes images that have no tag and that no container uses'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and not __fish_seen_subcommand_from pull list inspect remove import export check prune help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from pull" -l user -d 'User to log in as; the password is read from stdin' -r
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from pull" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from pull" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from pull" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from pull" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from pull" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from list" -l output -d 'Form of the list' -r -f -a "table\t'For people'
json\t'One document, in the field names of the CRI'"
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from list" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from list" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from list" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from inspect" -l output -d 'Form of the result' -r -f -a "table\t'For people'
json\t'One document, in the field names of the CRI'"
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from inspect" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from inspect" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from inspect" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from inspect" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from remove" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from remove" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from remove" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from remove" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from import" -l name -d 'Name of its only image, instead of the names the archive gives' -r
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from import" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from import" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from import" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from import" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from export" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from export" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from export" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from export" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from check" -l output -d 'Form of the result' -r -f -a "table\t'For people'
json\t'One document, in the field names of the CRI'"
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from check" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from check" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from check" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from check" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -l all -d 'Images with a tag too'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -l dry-run -d 'Only print what would be removed'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from prune" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "pull" -d 'Pulls an image and prints its id'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "list" -d 'Lists the images'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "inspect" -d 'Prints everything about an image'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Removes images, each under all of its names'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "import" -d 'Imports an OCI layout (a directory or an archive) or what `docker save` wrote; archives may be packed with gzip or zstd'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "export" -d 'Writes an image as an archive of an OCI layout'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "check" -d 'Compares the records of images and layers with what is on disk; fails if something is wrong'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "prune" -d 'Removes images that have no tag and that no container uses'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -l json -d 'One document instead of text'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -l all -d 'Lists what is fine too'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand status" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand status" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand status" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand status" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand status" -l json -d 'One document instead of text'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand status" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand support-bundle" -s o -l output -d 'The archive to write [default: corten-support-HOST-TIME.tar.gz in the current directory]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand support-bundle" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand support-bundle" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand support-bundle" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand support-bundle" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand support-bundle" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand why" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand why" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand why" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand why" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand why" -l json -d 'Prints the whole record as JSON'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand why" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -f -a "show" -d 'Shows bridge, subnets, addresses by pod, host ports, and what of others drops the pods\' packets'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -f -a "repair" -d 'Has the kernel match the records: pods get back what they have lost, what no pod has is removed'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -f -a "remove" -d 'Takes the bridge and the packet filter\'s table away'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and not __fish_seen_subcommand_from show repair remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from show" -l output -d 'Form of the result' -r -f -a "table\t'For people'
json\t'One document, in the field names of the CRI'"
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from show" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from show" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from show" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from repair" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from repair" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from repair" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from repair" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from repair" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from remove" -l config -d 'Configuration file [default: /etc/corten/config.toml, which may be absent]' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from remove" -l root -d 'Directory that survives a reboot: images, layers, records' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from remove" -l state -d 'Directory that does not: sockets, bundles, the runtime\'s state' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from remove" -l listen -d 'Unix socket of the CRI services' -r -F
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from remove" -l force -d 'Also while pods use them: they lose their network'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from help" -f -a "show" -d 'Shows bridge, subnets, addresses by pod, host ports, and what of others drops the pods\' packets'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from help" -f -a "repair" -d 'Has the kernel match the records: pods get back what they have lost, what no pod has is removed'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Takes the bridge and the packet filter\'s table away'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand network; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "config" -d 'Looks after the configuration'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "image" -d 'Looks after the images of the running server'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "doctor" -d 'Says what is wrong with this machine, what it means and how to mend it; a server need not run'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "status" -d 'Shows how the running server is: pods, containers, images, memory, disk, conditions, recent failures'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "support-bundle" -d 'Writes an archive of all that helps to find a fault, without secrets'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "why" -d 'Tells why a container ended'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "network" -d 'Looks after the built-in network of the running server'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and not __fish_seen_subcommand_from config image doctor status support-bundle why network help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "default" -d 'Prints the default configuration, with every key explained'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "check" -d 'Prints what is wrong with the configuration, each mistake with file, line, key, rule and value; fails if anything is'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "show" -d 'Prints every key with its value and who has set it'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "reload" -d 'Has the running server read its configuration again, as SIGHUP does'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "pull" -d 'Pulls an image and prints its id'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "list" -d 'Lists the images'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "inspect" -d 'Prints everything about an image'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "remove" -d 'Removes images, each under all of its names'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "import" -d 'Imports an OCI layout (a directory or an archive) or what `docker save` wrote; archives may be packed with gzip or zstd'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "export" -d 'Writes an image as an archive of an OCI layout'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "check" -d 'Compares the records of images and layers with what is on disk; fails if something is wrong'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "prune" -d 'Removes images that have no tag and that no container uses'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from network" -f -a "show" -d 'Shows bridge, subnets, addresses by pod, host ports, and what of others drops the pods\' packets'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from network" -f -a "repair" -d 'Has the kernel match the records: pods get back what they have lost, what no pod has is removed'
complete -c corten-cri -n "__fish_corten_cri_using_subcommand help; and __fish_seen_subcommand_from network" -f -a "remove" -d 'Takes the bridge and the packet filter\'s table away'
