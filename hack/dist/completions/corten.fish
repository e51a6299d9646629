# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_corten_global_optspecs
    string join \n root= log= log-format= debug systemd-cgroup rootless= criu= v/version h/help
end

function __fish_corten_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_corten_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_corten_using_subcommand
    set -l cmd (__fish_corten_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c corten -n "__fish_corten_needs_command" -l root -d 'where the states of containers are kept (default: /run/corten/runtime; for users: $XDG_RUNTIME_DIR/corten)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_needs_command" -l log -d 'write the log there instead of to standard error' -r -F
complete -c corten -n "__fish_corten_needs_command" -l log-format -d 'how its lines look (default: text)' -r -f -a "text\t''
json\t''"
complete -c corten -n "__fish_corten_needs_command" -l rootless -d 'go without cgroups that may not be made (default: auto)' -r -f -a "auto\t''
true\t''
false\t''"
complete -c corten -n "__fish_corten_needs_command" -l criu -d 'the CRIU binary of checkpoint and restore (default: criu in PATH)' -r -F
complete -c corten -n "__fish_corten_needs_command" -l debug -d 'log every step'
complete -c corten -n "__fish_corten_needs_command" -l systemd-cgroup -d 'have systemd make the cgroups: cgroupsPath is then slice:prefix:name'
complete -c corten -n "__fish_corten_needs_command" -s v -l version -d 'print the version'
complete -c corten -n "__fish_corten_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_needs_command" -f -a "create" -d 'create a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "start" -d 'start a created container'
complete -c corten -n "__fish_corten_needs_command" -f -a "run" -d 'create and start a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "exec" -d 'execute a process in a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "state" -d 'print the state of a container, as JSON'
complete -c corten -n "__fish_corten_needs_command" -f -a "list" -d 'list the containers below --root'
complete -c corten -n "__fish_corten_needs_command" -f -a "ps" -d 'list the processes of a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "events" -d 'print statistics and events of a container, as lines of JSON'
complete -c corten -n "__fish_corten_needs_command" -f -a "kill" -d 'send a signal to the process of a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "pause" -d 'suspend all processes of a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "resume" -d 'let the processes of a paused container run on'
complete -c corten -n "__fish_corten_needs_command" -f -a "update" -d 'change the limits of a container'
complete -c corten -n "__fish_corten_needs_command" -f -a "checkpoint" -d 'save the state of a running container'
complete -c corten -n "__fish_corten_needs_command" -f -a "restore" -d 'make a container from the images of a checkpoint'
complete -c corten -n "__fish_corten_needs_command" -f -a "delete" -d 'remove a container that has stopped'
complete -c corten -n "__fish_corten_needs_command" -f -a "spec" -d 'write a config.json to start from'
complete -c corten -n "__fish_corten_needs_command" -f -a "features" -d 'print what this runtime can do, as JSON'
complete -c corten -n "__fish_corten_needs_command" -f -a "help" -d 'print the help of the program or of a command'
complete -c corten -n "__fish_corten_using_subcommand create" -s b -l bundle -d 'the directory with config.json (default: the working directory)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand create" -l console-socket -d 'the unix socket that is sent the outer end of the process\'s terminal' -r -F
complete -c corten -n "__fish_corten_using_subcommand create" -l pidfd-socket -d 'the unix socket that is sent a pidfd of the process' -r -F
complete -c corten -n "__fish_corten_using_subcommand create" -l pid-file -d 'where to write the process\'s pid' -r -F
complete -c corten -n "__fish_corten_using_subcommand create" -l preserve-fds -d 'how many descriptors after the standard streams and $LISTEN_FDS are passed on' -r
complete -c corten -n "__fish_corten_using_subcommand create" -l no-pivot -d 'move the root over / and chroot instead of pivot_root, for a host whose root is an initramfs'
complete -c corten -n "__fish_corten_using_subcommand create" -l no-new-keyring -d 'leave the process in the caller\'s session keyring'
complete -c corten -n "__fish_corten_using_subcommand create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand start" -s h -l help -d 'Print help'
complete -c corten -n "__fish_corten_using_subcommand run" -s b -l bundle -d 'the directory with config.json (default: the working directory)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand run" -l console-socket -d 'the unix socket that is sent the outer end of the process\'s terminal' -r -F
complete -c corten -n "__fish_corten_using_subcommand run" -l pidfd-socket -d 'the unix socket that is sent a pidfd of the process' -r -F
complete -c corten -n "__fish_corten_using_subcommand run" -l pid-file -d 'where to write the process\'s pid' -r -F
complete -c corten -n "__fish_corten_using_subcommand run" -l preserve-fds -d 'how many descriptors after the standard streams and $LISTEN_FDS are passed on' -r
complete -c corten -n "__fish_corten_using_subcommand run" -l no-pivot -d 'move the root over / and chroot instead of pivot_root, for a host whose root is an initramfs'
complete -c corten -n "__fish_corten_using_subcommand run" -l no-new-keyring -d 'leave the process in the caller\'s session keyring'
complete -c corten -n "__fish_corten_using_subcommand run" -s d -l detach -d 'do not wait for the end of the process'
complete -c corten -n "__fish_corten_using_subcommand run" -l keep -d 'do not delete the container at its end'
complete -c corten -n "__fish_corten_using_subcommand run" -l no-subreaper -d 'has no effect: corten never makes itself the reaper of other processes'
complete -c corten -n "__fish_corten_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand exec" -l console-socket -d 'the unix socket that is sent the outer end of the process\'s terminal' -r -F
complete -c corten -n "__fish_corten_using_subcommand exec" -l pidfd-socket -d 'the unix socket that is sent a pidfd of the process' -r -F
complete -c corten -n "__fish_corten_using_subcommand exec" -l cwd -d 'the working directory in the container' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -s e -l env -d 'one more environment variable' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -s u -l user -d 'the user and group, as numbers' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -s g -l additional-gids -d 'one more group' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -s p -l process -d 'the process as a JSON document, as `process` of config.json' -r -F
complete -c corten -n "__fish_corten_using_subcommand exec" -l pid-file -d 'where to write the process\'s pid' -r -F
complete -c corten -n "__fish_corten_using_subcommand exec" -l process-label -d 'the SELinux label of the process' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -l apparmor -d 'the AppArmor profile of the process' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -s c -l cap -d 'one more capability' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -l preserve-fds -d 'how many descriptors after the standard streams and $LISTEN_FDS are passed on' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -l cgroup -d 'the existing cgroup below the container\'s that the process goes to' -r
complete -c corten -n "__fish_corten_using_subcommand exec" -s t -l tty -d 'give the process a terminal'
complete -c corten -n "__fish_corten_using_subcommand exec" -s d -l detach -d 'do not wait for the end of the process'
complete -c corten -n "__fish_corten_using_subcommand exec" -l no-new-privs -d 'let no program of the process raise its privileges'
complete -c corten -n "__fish_corten_using_subcommand exec" -l ignore-paused -d 'do it in a paused container too; it takes effect once that is resumed'
complete -c corten -n "__fish_corten_using_subcommand exec" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand state" -s h -l help -d 'Print help'
complete -c corten -n "__fish_corten_using_subcommand list" -s f -l format -d 'how it is printed (default: table)' -r -f -a "table\t''
json\t''"
complete -c corten -n "__fish_corten_using_subcommand list" -s q -l quiet -d 'print the ids alone'
complete -c corten -n "__fish_corten_using_subcommand list" -s h -l help -d 'Print help'
complete -c corten -n "__fish_corten_using_subcommand ps" -s f -l format -d 'how it is printed (default: table)' -r -f -a "table\t''
json\t''"
complete -c corten -n "__fish_corten_using_subcommand ps" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand events" -l interval -d 'the time between two statistics, such as 500ms (default: 5s)' -r
complete -c corten -n "__fish_corten_using_subcommand events" -l stats -d 'print the statistics of now, and exit'
complete -c corten -n "__fish_corten_using_subcommand events" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand kill" -s a -l all -d 'send it to every process of the container'
complete -c corten -n "__fish_corten_using_subcommand kill" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand pause" -s h -l help -d 'Print help'
complete -c corten -n "__fish_corten_using_subcommand resume" -s h -l help -d 'Print help'
complete -c corten -n "__fish_corten_using_subcommand update" -s r -l resources -d 'the limits as a JSON document; - for the standard input' -r -F
complete -c corten -n "__fish_corten_using_subcommand update" -l blkio-weight -d 'weight of block IO, 10 to 1000' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-period -d 'period of the CPU quota; 0 for the default' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-quota -d 'CPU time per period; -1 for no limit' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-burst -d 'CPU time that may be saved up from earlier periods' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-share -d 'CPU weight relative to others' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-rt-period -d 'period of the realtime CPU limit; 0 for the default' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-rt-runtime -d 'realtime CPU time per period' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpuset-cpus -d 'the CPUs to use, such as 0-2,7' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpuset-mems -d 'the memory nodes to use' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l memory -d 'memory limit; -1 for none' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l memory-reservation -d 'memory kept when memory is short; -1 for the default' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l memory-swap -d 'limit of memory and swap together; -1 for none' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l kernel-memory -d 'limit of kernel memory, which Linux has not had since 5.16' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l kernel-memory-tcp -d 'limit of the kernel\'s TCP buffers, on cgroup v1' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l pids-limit -d 'the most processes and threads; -1 for no limit' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l l3-cache-schema -d 'Intel RDT/CAT schema of the L3 cache' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l mem-bw-schema -d 'Intel RDT/MBA schema of the memory bandwidth' -r
complete -c corten -n "__fish_corten_using_subcommand update" -l cpu-idle -d '1 to run only when no other cgroup wants the CPU' -r
complete -c corten -n "__fish_corten_using_subcommand update" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l image-path -d 'where the images are (default: checkpoint)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l work-path -d 'where CRIU puts its log and other files of its own' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l manage-cgroups-mode -d 'what happens to the properties of cgroups (default: soft)' -r -f -a "soft\t''
full\t''
strict\t''
ignore\t''"
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l empty-ns -d 'a namespace that is made but not filled' -r -f -a "network\t''"
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l parent-path -d 'the images of an earlier --pre-dump, relative to --image-path' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l status-fd -d 'the descriptor that gets a NUL once --lazy-pages can be served' -r
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l page-server -d 'where memory pages are sent to' -r
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l tcp-established -d 'with open TCP connections'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l ext-unix-sk -d 'with unix sockets whose other end is outside'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l shell-job -d 'with a session whose leader is outside'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l lazy-pages -d 'restore memory when it is needed, by userfaultfd'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l file-locks -d 'with file locks'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l auto-dedup -d 'take pages out of older images that newer ones have'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l leave-running -d 'do not end the processes'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l tcp-skip-in-flight -d 'without TCP connections that are not established yet'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l link-remap -d 'with files that have been removed, by linking them back'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -l pre-dump -d 'save the memory only, and let the processes run on'
complete -c corten -n "__fish_corten_using_subcommand checkpoint" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand restore" -s b -l bundle -d 'the directory with config.json (default: the working directory)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand restore" -l image-path -d 'where the images are (default: checkpoint)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand restore" -l work-path -d 'where CRIU puts its log and other files of its own' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand restore" -l manage-cgroups-mode -d 'what happens to the properties of cgroups (default: soft)' -r -f -a "soft\t''
full\t''
strict\t''
ignore\t''"
complete -c corten -n "__fish_corten_using_subcommand restore" -l empty-ns -d 'a namespace that is made but not filled' -r -f -a "network\t''"
complete -c corten -n "__fish_corten_using_subcommand restore" -l console-socket -d 'the unix socket that is sent the outer end of the process\'s terminal' -r -F
complete -c corten -n "__fish_corten_using_subcommand restore" -l pid-file -d 'where to write the process\'s pid' -r -F
complete -c corten -n "__fish_corten_using_subcommand restore" -l lsm-profile -d 'the profile of the processes, of apparmor or selinux' -r
complete -c corten -n "__fish_corten_using_subcommand restore" -l lsm-mount-context -d 'the SELinux label of the mounts' -r
complete -c corten -n "__fish_corten_using_subcommand restore" -l tcp-established -d 'with open TCP connections'
complete -c corten -n "__fish_corten_using_subcommand restore" -l ext-unix-sk -d 'with unix sockets whose other end is outside'
complete -c corten -n "__fish_corten_using_subcommand restore" -l shell-job -d 'with a session whose leader is outside'
complete -c corten -n "__fish_corten_using_subcommand restore" -l lazy-pages -d 'restore memory when it is needed, by userfaultfd'
complete -c corten -n "__fish_corten_using_subcommand restore" -l file-locks -d 'with file locks'
complete -c corten -n "__fish_corten_using_subcommand restore" -l auto-dedup -d 'take pages out of older images that newer ones have'
complete -c corten -n "__fish_corten_using_subcommand restore" -s d -l detach -d 'do not wait for the end of the process'
complete -c corten -n "__fish_corten_using_subcommand restore" -l no-subreaper -d 'has no effect: corten never makes itself the reaper of other processes'
complete -c corten -n "__fish_corten_using_subcommand restore" -l no-pivot -d 'move the root over / and chroot instead of pivot_root, for a host whose root is an initramfs'
complete -c corten -n "__fish_corten_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand delete" -s f -l force -d 'kill it before, and succeed where there is none'
complete -c corten -n "__fish_corten_using_subcommand delete" -s h -l help -d 'Print help'
complete -c corten -n "__fish_corten_using_subcommand spec" -s b -l bundle -d 'where to write it (default: the working directory)' -r -f -a "(__fish_complete_directories)"
complete -c corten -n "__fish_corten_using_subcommand spec" -l rootless -d 'for a container made by a user other than root'
complete -c corten -n "__fish_corten_using_subcommand spec" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand features" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c corten -n "__fish_corten_using_subcommand help" -s h -l help -d 'Print help'
