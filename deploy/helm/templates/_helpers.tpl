{{/* Of a revision that stands beside the default one, behind each name. */}}
{{- define "outrigger.rev" -}}
{{- if ne .Values.revision "default" -}}-{{ .Values.revision }}{{- end -}}
{{- end -}}
