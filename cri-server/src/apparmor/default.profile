# What RuntimeDefault means for AppArmor: a container does with its own files, processes and network what its capabilities
# allow, and reaches neither the kernel's settings nor its mounts nor the processes of others. It includes nothing, so that
# it needs no file of a distribution.
profile corten-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  umount,

  # No mount of anything: what is mounted over the kernel's files could hide them from these rules.
  deny mount,

  # Signals and traces among its own; signals of the host's supervisors, whatever profile they have.
  signal (send, receive) peer=corten-default,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  ptrace (trace, tracedby, read, readby) peer=corten-default,

  # /proc: what belongs to processes may be written to, and of /proc/sys what is the pod's own shared memory; nothing else.
  deny /proc/* w,
  deny /proc/[^1-9st]*/** w,
  deny /proc/s[^ey]*/** w,
  deny /proc/t[^h]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{[^s],s[^h],sh[^m]}** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # /sys: nothing but cgroups is written to, and firmware is not looked at.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
