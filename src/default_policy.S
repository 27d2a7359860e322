// conf/default.policy as bytes in the program: builtin:default.
        .section .rodata
        .global imafs_default_policy
        .global imafs_default_policy_end
imafs_default_policy:
        .incbin "default.policy"
imafs_default_policy_end:

        .section .note.GNU-stack, "", %progbits
