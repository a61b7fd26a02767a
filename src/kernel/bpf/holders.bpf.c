// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Who has which socket open, and who keeps a namespace: a walk over all open files of all processes inside the kernel, which
 * needs no look into /proc/PID/fd. An object of its own, so that a command that wants nothing else loads nothing else.
 */
#include "kernel.h"
#include "event.h"

SEC("iter/task_file")
int open_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct open_file found = {};
	struct socket *socket;
	struct sock *sk;
	unsigned short family;

	if (!task || !file)
		return 0;
	if ((file->f_inode->i_mode & S_IFMT) == S_IFSOCK) {
		/* Behind a void pointer the verifier allows probes only. */
		socket = file->private_data;
		sk = BPF_CORE_READ(socket, sk);
		family = BPF_CORE_READ(sk, __sk_common.skc_family);
		if (family != AF_INET && family != AF_INET6)
			return 0;
		found.kind = FILE_SOCKET;
	} else if (file->f_inode->i_sb->s_magic == NSFS_MAGIC) {
		found.kind = FILE_NAMESPACE;
	} else {
		return 0;
	}
	found.pid = task->tgid;
	found.fd = ctx->fd;
	found.inode = file->f_inode->i_ino;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
