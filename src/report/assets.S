// The files of a report as bytes in the program: page, style, script, charts and their licence.
        .section .rodata

        .macro asset name, file
        .global imafs_report_\name
        .global imafs_report_\name\()_end
imafs_report_\name:
        .incbin "\file"
imafs_report_\name\()_end:
        .endm

        asset page, "report.html"
        asset style, "report.css"
        asset script, "report.js"
        asset echarts, "echarts/dist/echarts.min.js"
        asset licence, "echarts/LICENSE"
        asset notice, "echarts/NOTICE"

        .section .note.GNU-stack, "", %progbits
